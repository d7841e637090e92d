"""Who this process is to a daemon: run, rank, program and versions, all read when a connection is made."""

import contextlib
import hashlib
import os
import platform
import sys
import time

from . import __version__, wire

#: Frameworks that drive the loop, the most specific first: the first one that the job has imported is reported.
_FRAMEWORKS = ("lightning", "pytorch_lightning", "transformers", "deepspeed", "accelerate")


def program():
    """Stem of the script or module being run: never its arguments, which may hold secrets."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        name = spec.name
        return name[: -len(".__main__")] if name.endswith(".__main__") else name
    path = getattr(main, "__file__", None) or (sys.argv[0] if getattr(sys, "argv", None) else "")
    return os.path.splitext(os.path.basename(path))[0] or "python"


def _launcher():
    """(pid, start in seconds since the epoch) of the process that started this rank: the same for all ranks that it started."""
    pid = os.getppid()
    with open("/proc/%d/stat" % pid, "rb") as stat:
        ticks = int(stat.read().rpartition(b")")[2].split()[19])
    with open("/proc/stat", "rb") as stat:
        boot = next(int(line.split()[1]) for line in stat if line.startswith(b"btime "))
    return pid, boot + ticks / os.sysconf("SC_CLK_TCK")


def run_name():
    """Name for a run that nobody named: the program and the local time, for ranks the time at which their launcher began."""
    started = time.time()
    if ranks()[1] > 1:
        with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
            started = _launcher()[1]
    return "%s-%s" % (program(), time.strftime("%Y%m%d-%H%M%S", time.localtime(started)))


def job_token():
    """What joins the ranks of a job that `gpuwatch run` did not start: made from their common launcher, or random."""
    if ranks()[1] > 1:
        with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
            return hashlib.sha256(repr((os.getuid(), *_launcher())).encode()).hexdigest()[:32]
    return os.urandom(16).hex()


def framework():
    """The training framework that the job has imported, or "torch"."""
    for name in _FRAMEWORKS:
        if name in sys.modules:
            return "lightning" if name == "pytorch_lightning" else name
    return "torch"


def _number(name, default):
    try:
        return max(0, int(os.environ[name]))
    except (KeyError, ValueError):
        return default


def ranks():
    """(rank, world size): of the process group where there is one (it may have been made without the environment)."""
    distributed = sys.modules.get("torch.distributed")
    try:
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
    except Exception:  # noqa: S110 - a group that is being taken down; the environment will do
        pass
    rank = _number("RANK", 0)
    return rank, max(_number("WORLD_SIZE", 1), rank + 1)


def hello(session):
    """The first message of a connection, as a dict ready for JSON."""
    ring = session.ring
    torch = sys.modules.get("torch")
    rank, world_size = ranks()
    return {
        "t": "hello",
        "wire": wire.WIRE_VERSION,
        "version": __version__,
        "run": session.run,
        "token": session.token,
        "attempt_id": session.attempt_id,
        "rank": rank,
        "local_rank": _number("LOCAL_RANK", 0),
        "world_size": world_size,
        "python": platform.python_version(),
        "torch": str(getattr(torch, "__version__", "")),
        "framework": framework(),
        "program": program(),
        "clock": {"monotonic_ns": time.monotonic_ns(), "wall_ns": time.time_ns()},
        "ring": {"id": ring.ring_id, "slots": ring.slot_count, "slot_bytes": ring.slot_bytes},
        "ns_pid": os.getpid(),
        "uid": os.getuid(),
        "device": session.device,
    }
