"""The checks of `gpuwatch doctor`, in the order in which they are shown. Each looks at the real thing and changes nothing."""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gpuwatch import paths
from gpuwatch.cli.injection import ask, injected_environment
from gpuwatch.cli.private_daemon import DEFAULT_PORT, port_is_free
from gpuwatch.cli.sampler import Sampling
from gpuwatch.cli.sampler import ask as ask_sampling
from gpuwatch.cli.sampler import sockets as sampler_sockets

if TYPE_CHECKING:
    from collections.abc import Callable

_NVML_SECONDS = 10.0
_KERNEL_SECONDS = 60.0
_HTTP_SECONDS = 2.0
_MEMFD_BYTES = 1 << 20


class Result(NamedTuple):
    check: str
    state: str  # ok | note | fail
    detail: str
    fix: str = ""


def _asked(timeout_seconds: float, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a module of ours answers in a process of its own, which a sick library may hang or end. Raises TimeoutExpired."""
    command = [sys.executable, "-P", "-m", module, *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout_seconds,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def hooks(logdir: Path) -> Result:  # noqa: ARG001  # every check has the same signature
    """The whole way into a child interpreter, up to where the hooks wait for torch."""
    facts = ask(sys.executable, injected_environment(os.environ))
    if facts is not None and facts["hooked"]:
        return Result("hooks", "ok", "reach a Python that `gpuwatch run` starts")
    return Result("hooks", "fail", "do not reach a Python that `gpuwatch run` starts", "Install gpuwatchd again.")


def torch(logdir: Path) -> Result:  # noqa: ARG001
    if importlib.util.find_spec("torch") is None:
        return Result(
            "torch",
            "note",
            f"not installed for {sys.executable}",
            "That is fine when your training uses another interpreter; for `gpuwatch demo`: pip install torch scikit-learn",
        )
    version = importlib.metadata.version("torch")
    if tuple(int(part) for part in version.split(".")[:2]) < (2, 1):
        return Result("torch", "fail", f"{version} is older than 2.1", "The hooks need torch 2.1 or newer.")
    return Result("torch", "ok", version)


def kernel(logdir: Path) -> Result:  # noqa: ARG001
    """What would read gradients, and why; asked in a child, since it takes an import of torch."""
    if importlib.util.find_spec("torch") is None:
        return Result("kernel", "note", f"not known: torch is not installed for {sys.executable}", "See the check of torch.")
    try:
        answer = _asked(_KERNEL_SECONDS, "gpuwatch_hooks.kernels.outlook")
        found = json.loads(answer.stdout)
    except subprocess.TimeoutExpired:
        return Result("kernel", "note", f"torch did not answer within {_KERNEL_SECONDS:.0f} s", "Does `import torch` hang?")
    except ValueError:
        return Result("kernel", "note", "torch could not be asked", answer.stderr.strip()[-200:])
    detail = f"{found['kernel']}: {found['detail']}" + (f" ({found['missing']})" if found["missing"] else "")
    if found["kernel"] == "foreach" and found["missing"]:
        fix = "Gradients are then read with torch's own operators, several times each: pip install nvidia-cuda-nvrtc or triton."
        return Result("kernel", "note", detail, fix)
    return Result("kernel", "ok", detail)


def memfd(logdir: Path) -> Result:  # noqa: ARG001
    """What the ring is made of: a sealed memory file with its pages allocated."""
    try:
        fd = os.memfd_create("gpuwatch-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, _MEMFD_BYTES)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        finally:
            os.close(fd)
    except OSError as error:
        return Result(
            "memfd", "fail", f"sealed memory files do not work: {error.strerror}", "Does a seccomp filter forbid them?"
        )
    return Result("memfd", "ok", "sealed memory files work")


def control_socket(logdir: Path) -> Result:  # noqa: ARG001
    path = paths.socket_to_bind()
    if paths.answers(paths.socket_to_call()):
        return Result("socket", "ok", f"a daemon answers at {paths.socket_to_call()}")
    folder = path.parent
    above = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        return Result("socket", "fail", f"{above} is not yours to write", "Set XDG_RUNTIME_DIR to a folder of your own.")
    if len(os.fsencode(path)) > 100:  # sun_path holds 107 bytes, and a private daemon's name is longer
        return Result("socket", "fail", f"{path} is too long for a socket", "Set XDG_RUNTIME_DIR to a shorter path.")
    if folder.exists() and folder.stat().st_mode & 0o022 and folder != paths.SYSTEM_DIRECTORY:
        return Result("socket", "fail", f"others may write in {folder}", f"chmod 700 {folder}")
    return Result("socket", "ok", f"{path} (no daemon there now; `gpuwatch run` starts a private one)")


def port(logdir: Path) -> Result:  # noqa: ARG001
    if port_is_free(DEFAULT_PORT):
        return Result("port", "ok", f"{DEFAULT_PORT} is free")
    text = _get(f"http://127.0.0.1:{DEFAULT_PORT}/metrics")
    if text is not None and "gpuwatch_build_info" in text:
        return Result("port", "ok", f"a gpuwatch daemon serves metrics at {DEFAULT_PORT}")
    return Result(
        "port",
        "note",
        f"{DEFAULT_PORT} is in use by another program",
        "`gpuwatch run` takes a free port instead; a daemon needs --listen 127.0.0.1:PORT",
    )


def log_directory(logdir: Path) -> Result:
    above = next(parent for parent in (logdir.absolute(), *logdir.absolute().parents) if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        return Result("logdir", "fail", f"{above} is not yours to write", "Choose another with --logdir.")
    free = shutil.disk_usage(above).free
    if free < 1 << 30:
        return Result("logdir", "note", f"{free >> 20} MiB are free at {above}", "A run of a million steps takes about 1 GiB.")
    return Result("logdir", "ok", f"{logdir} can be written, {free >> 30} GiB free")


def driver(logdir: Path) -> Result:  # noqa: ARG001
    """NVML in a child process: a sick driver can hang a call for ever."""
    try:
        answer = _asked(_NVML_SECONDS, "gpuwatch.samplers.nvml_worker", "--probe")
        found = json.loads(answer.stdout)
    except subprocess.TimeoutExpired:
        return Result(
            "driver",
            "note",
            f"NVML did not answer within {_NVML_SECONDS:.0f} s",
            "The driver hangs: look for NVRM and Xid lines in dmesg; a reboot or a GPU reset may be needed.",
        )
    except ValueError:
        return Result("driver", "note", "NVML could not be asked", answer.stderr.strip()[-200:])
    if found.get("error"):
        return Result("driver", "note", f"no GPU is sampled: {found['error']}", _driver_fix())
    names = ", ".join(dict.fromkeys(found["gpus"]))
    return Result("driver", "ok", f"NVIDIA {found['driver_version']}, {len(found['gpus'])} GPU ({names})")


def gpu_sampling(logdir: Path) -> Result:  # noqa: ARG001
    """Whether the daemons that run here sample, and what they hold."""
    daemons = [ask_sampling(path) for path in sampler_sockets()]
    if not daemons:
        return Result("sampling", "ok", "no daemon samples GPUs now")
    told = "; ".join(_how_it_samples(daemon) for daemon in daemons)
    if any(daemon.state == "paused" for daemon in daemons):
        return Result("sampling", "note", told, "gpuwatch resume")
    if any(not daemon.done or daemon.state == "failing" for daemon in daemons):
        return Result("sampling", "note", told, "See the check of the driver above, and the daemon's log.")
    return Result("sampling", "ok", told)


def _how_it_samples(daemon: Sampling) -> str:
    if daemon.state == "sampling":
        return f"the daemon at {daemon.socket} samples, by process {', '.join(map(str, daemon.processes))}"
    return f"the daemon at {daemon.socket}: {daemon.message or daemon.state}"


def _driver_fix() -> str:
    if not Path("/proc/driver/nvidia/version").exists():
        return "No NVIDIA kernel driver is loaded here. Training on the CPU is recorded all the same."
    if not os.access("/dev/nvidiactl", os.R_OK | os.W_OK):
        return "/dev/nvidiactl is not yours to open: in a container, give it the GPUs; else see the device's group."
    return "The driver is loaded, but its library is not found or does not match: reinstall libnvidia-ml of the same version."


def ptrace(logdir: Path) -> Result:  # noqa: ARG001
    """What a debugger or py-spy may do here. `gpuwatch run` needs none of it."""
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    level = scope.read_text(encoding="ascii").strip() if scope.exists() else "0"
    if level == "0" or os.geteuid() == 0:
        return Result("ptrace", "ok", f"processes of your own can be inspected (ptrace_scope {level})")
    return Result(
        "ptrace",
        "note",
        f"running processes cannot be inspected from outside (ptrace_scope {level}); `gpuwatch run` does not need that",
        "For py-spy and debuggers: sudo sysctl kernel.yama.ptrace_scope=0",
    )


def prometheus(logdir: Path) -> Result:  # noqa: ARG001
    if _get("http://127.0.0.1:9090/-/ready") is None:
        return Result(
            "prometheus", "note", "none answers at 127.0.0.1:9090", "gpuwatch works without; see the tutorial for scraping it."
        )
    targets = _get("http://127.0.0.1:9090/api/v1/targets?state=active") or ""
    if f":{DEFAULT_PORT}/" in targets:
        return Result("prometheus", "ok", f"127.0.0.1:9090 scrapes port {DEFAULT_PORT}")
    return Result(
        "prometheus",
        "note",
        f"127.0.0.1:9090 answers, but does not scrape port {DEFAULT_PORT}",
        f"Add a scrape_config with the target 127.0.0.1:{DEFAULT_PORT}.",
    )


def tensorboard(logdir: Path) -> Result:
    if importlib.util.find_spec("tensorboard") is None:
        return Result("tensorboard", "fail", "cannot be imported; the daemon needs it", "pip install tensorboard")
    return Result("tensorboard", "ok", f"{importlib.metadata.version('tensorboard')}: tensorboard --logdir {logdir}")


def _get(url: str) -> str | None:
    """The body of a local page, or None. Proxies are for other hosts."""
    import urllib.error
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_HTTP_SECONDS) as answer:
            body: bytes = answer.read(1 << 20)
    except (OSError, urllib.error.URLError, ValueError):
        return None
    return body.decode(errors="replace")


ALL: tuple[Callable[[Path], Result], ...] = (
    hooks,
    torch,
    kernel,
    memfd,
    control_socket,
    port,
    log_directory,
    driver,
    gpu_sampling,
    ptrace,
    prometheus,
    tensorboard,
)
