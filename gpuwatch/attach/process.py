"""What /proc tells about a process before anything is touched: is it Python, has it torch, is it a rank or a launcher."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from gpuwatch.attach.maps import Mapping, read_maps

_VERSION = re.compile(r"(?:lib)?python(?P<major>3)\.(?P<minor>\d{1,2})(?P<threaded>t)?(?:d)?(?:\.so|$|/)")
_LAUNCHERS = (
    "torchrun",
    "torch.distributed.run",
    "torch.distributed.launch",
    "accelerate",
    "accelerate.commands.launch",
    "accelerate.commands.accelerate_cli",
    "deepspeed",
    "deepspeed.launcher.launch",
    "deepspeed.launcher.runner",
    "fabric",
    "composer",
    "colossalai",
    "horovodrun",
    "mpirun",
)
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


@dataclass(frozen=True)
class Process:
    """One process as /proc shows it to the caller; what the caller may not read is None or empty."""

    pid: int
    start_ticks: int
    parent: int
    state: str  # R running, S sleeping, D uninterruptible, T stopped, t traced, Z zombie
    uid: int
    tracer: int
    namespace_pids: tuple[int, ...]
    argv: tuple[str, ...]
    executable: str
    readable: bool  # maps could be read: the kernel grants us PTRACE_MODE_READ
    python: tuple[int, int] | None
    free_threaded: bool
    torch: bool
    cuda: bool
    name: str = ""  # of its main thread, as the kernel has it
    torch_version: tuple[int, int] = (0, 0)  # (0, 0): not loaded, or not to be read
    ranks: dict[str, str] = field(default_factory=dict)  # RANK, LOCAL_RANK, WORLD_SIZE from its environment
    hooked: bool = False  # started under `gpuwatch run`: GPUWATCH=1 in its environment

    @property
    def launcher(self) -> bool:
        """torchrun and its kind: starts ranks, trains nothing itself."""
        named = {os.path.basename(self.argv[0]) if self.argv else "", self.title.removeprefix("-m ")}
        return "RANK" not in self.ranks and not named.isdisjoint(_LAUNCHERS)

    @property
    def title(self) -> str:
        """What a person would call it: the script or module, not the interpreter, and never its arguments (secrets)."""
        words = self.argv
        program = os.path.basename(words[0]) if words else self.name
        if self.python is None and "python" not in program:
            return program
        for index, word in enumerate(words[1:], 1):
            if word in ("-m", "-c"):
                return f"-m {words[index + 1]}" if word == "-m" and len(words) > index + 1 else "-c"
            if not word.startswith("-"):
                return os.path.basename(word)
        return program


def read_process(pid: int) -> Process:
    """Read `pid` once. Raises ProcessLookupError when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        status = dict(_status_lines(pid))
    except FileNotFoundError:
        raise ProcessLookupError(f"there is no process {pid}") from None
    fields = stat[stat.rindex(")") + 2 :].split()
    argv = tuple(word for word in _read(f"/proc/{pid}/cmdline").decode(errors="replace").split("\0") if word)
    try:
        executable = os.readlink(f"/proc/{pid}/exe")
        mappings = read_maps(pid)
        readable = True
    except OSError:
        executable, mappings, readable = "", [], False
    environment = _environment(pid)
    torch = next((m.path for m in mappings if "/libtorch_python" in m.path), "")
    version, free_threaded = _python(executable, mappings)
    return Process(
        pid=pid,
        start_ticks=int(fields[19]),
        parent=int(fields[1]),
        state=fields[0],
        uid=int(status["Uid"].split()[0]),
        tracer=int(status.get("TracerPid", "0")),
        namespace_pids=tuple(int(word) for word in status.get("NSpid", str(pid)).split()),
        argv=argv,
        executable=executable,
        readable=readable,
        python=version,
        free_threaded=free_threaded,
        torch=bool(torch),
        name=status.get("Name", ""),
        torch_version=_torch_version(pid, torch),
        cuda=any(m.path.startswith("/dev/nvidia") or "/libcuda.so" in m.path for m in mappings),
        ranks={name: environment[name] for name in _RANK_VARIABLES if name in environment},
        hooked=environment.get("GPUWATCH") == "1",
    )


def started(pid: int) -> int:
    """When `pid` started, in clock ticks since boot. Raises OSError when it is gone."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return int(stat[stat.rindex(")") + 2 :].split()[19])


def seen_from(pid: int, path: str) -> str:
    """`path` as a process names it that has another root directory (chroot) than we; unchanged where it lies outside."""
    try:
        root = os.readlink(f"/proc/{pid}/root")
    except OSError:
        return path
    return "/" + os.path.relpath(path, root) if root != "/" and Path(path).is_relative_to(root) else path


def python_processes() -> list[Process]:
    """Every process here that runs CPython and that the caller may look into, by pid."""
    found = []
    for entry in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            process = read_process(entry)
        except (ProcessLookupError, OSError, ValueError, KeyError):
            continue
        looks_python = process.python is not None or "python" in os.path.basename(process.argv[0] if process.argv else "")
        if looks_python and entry != os.getpid():
            found.append(process)
    return found


def children(pid: int) -> list[int]:
    """The whole tree under `pid`, parents first, without `pid`."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            parents.setdefault(int(stat[stat.rindex(")") + 2 :].split()[1]), []).append(int(name))
    tree, queue = [], [pid]
    while queue:
        below = sorted(parents.get(queue.pop(0), []))
        tree += below
        queue += below
    return tree


def waiting_in(pid: int) -> str:
    """Where the main thread sleeps in the kernel ("futex_wait", "hrtimer_nanosleep"), or "" when it runs or may not be seen."""
    name = _read(f"/proc/{pid}/wchan").decode(errors="replace")
    return "" if name in ("", "0") else name


def _status_lines(pid: int) -> list[tuple[str, str]]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    return [(key, value.strip()) for key, _, value in (line.partition(":") for line in lines)]


def _environment(pid: int) -> dict[str, str]:
    words = _read(f"/proc/{pid}/environ").decode(errors="replace").split("\0")
    return {key: value for key, separator, value in (word.partition("=") for word in words) if separator}


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _torch_version(pid: int, library: str) -> tuple[int, int]:
    """Out of torch/version.py beside the library's folder, in the target's own file system."""
    text = _read(f"/proc/{pid}/root{os.path.dirname(os.path.dirname(library))}/version.py") if library else b""
    found = re.search(rb"__version__ = '(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _python(executable: str, mappings: list[Mapping]) -> tuple[tuple[int, int] | None, bool]:
    """Version by name: of libpython where it is shared, else of the executable, else of the standard library's extensions."""
    paths = list(dict.fromkeys(m.path for m in mappings if m.path.startswith("/")))
    libraries = [path for path in paths if os.path.basename(path).startswith("libpython3")]
    for path in [*libraries, executable, *(path for path in paths if "/lib-dynload/" in path)]:
        found = _VERSION.search(os.path.basename(path)) or ("/lib-dynload/" in path and _VERSION.search(path))
        if found:
            return (int(found["major"]), int(found["minor"])), bool(found["threaded"])
    return None, False
