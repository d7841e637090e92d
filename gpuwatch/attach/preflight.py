"""Why a process cannot be attached to, in one sentence with the way out; found before anything is touched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from gpuwatch.attach import gdb, launchers, machines
from gpuwatch.attach.process import Process, children, read_process, seen_from, waiting_in

OLDEST_PYTHON, REMOTE_DEBUG_PYTHON = (3, 9), (3, 14)
_CAP_SYS_PTRACE = 19


class Finding(NamedTuple):
    """One obstacle (or, when not `fatal`, one thing to know): a stable code, what was seen, what to do."""

    code: str
    sentence: str
    fix: str
    fatal: bool = True


def check(process: Process) -> list[Finding]:
    """Everything that speaks against an attach to `process` now, the most fundamental first; empty when nothing does."""
    return _hopeless(process) or [*_unsuitable(process), *_permission(process), *_delayed(process)]


def socket_is_hidden(process: Process, socket_path: str) -> bool:
    """Whether the target, by the same name, reaches something else than the daemon's socket: it has another file system."""
    try:
        ours = os.stat(socket_path)
    except OSError:
        return False  # no daemon yet: nothing to compare with
    try:
        theirs = os.stat(f"/proc/{process.pid}/root{seen_from(process.pid, socket_path)}")
    except PermissionError:
        return False
    except OSError:
        return True
    return (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino)


def _hopeless(process: Process) -> list[Finding]:
    """What makes every other question pointless."""
    pid = process.pid
    if process.state == "Z":
        return [Finding("zombie", f"process {pid} has ended and waits for its parent", "nothing is left to attach to")]
    if pid == os.getpid():
        return [Finding("self", f"process {pid} is this command itself", "give the pid of the training process")]
    if not process.readable:
        ended = Finding("zombie", f"process {pid} has ended", "nothing is left to attach to")
        return [ended if has_ended(pid) else _not_readable(process)]
    if process.python is None:
        return [Finding("not_python", f"process {pid} ({process.executable}) is not CPython", _rank_advice(process))]
    if process.tracer:
        tracer = _name(process.tracer)
        sentence = f"process {pid} is already traced by pid {process.tracer} ({tracer})"
        return [Finding("traced", sentence, f"end {tracer}, then attach again")]
    return []


def _unsuitable(process: Process) -> list[Finding]:
    """Python, but not one that the hooks can go into, or not yet."""
    pid, findings = process.pid, []
    if launchers.starts_ranks(process):
        findings.append(Finding("launcher", f"process {pid} starts ranks and trains nothing itself", _rank_advice(process)))
    elif not process.torch:
        sentence = f"process {pid} is Python, but torch is not loaded in it"
        findings.append(
            Finding("no_torch", sentence, "use --wait to attach as soon as it is, or give the training process's pid")
        )
    version = process.python or (0, 0)
    if version < OLDEST_PYTHON:
        sentence = f"process {pid} runs Python {version[0]}.{version[1]}"
        findings.append(Finding("old_python", sentence, "3.9 is the oldest that the hooks speak"))
    if version < REMOTE_DEBUG_PYTHON and machines.here() is None and not gdb.available():
        kind = os.uname().machine
        sentence = f"attaching to Python older than 3.14 is built for x86-64 and aarch64; this is {kind}, and there is no gdb"
        findings.append(Finding("architecture", sentence, "install gdb, or start the job under `gpuwatch run`"))
    return findings


def _delayed(process: Process) -> list[Finding]:
    """The hooks will go in, but not now."""
    pid = process.pid
    if process.state == "T":
        sentence, fix = f"process {pid} is stopped", f"the hooks go in when it continues: kill -CONT {pid}"
        return [Finding("stopped", sentence, fix, fatal=False)]
    if process.state == "D":
        sentence = f"process {pid} sleeps uninterruptibly in {waiting_in(pid) or 'the kernel'}"
        return [Finding("uninterruptible", sentence, "the hooks go in when the kernel lets it go", fatal=False)]
    return []


def has_ended(pid: int) -> bool:
    """Whether the process is gone, or waits for its parent."""
    try:
        return read_process(pid).state == "Z"
    except (OSError, ValueError, KeyError):
        return not os.path.exists(f"/proc/{pid}")


def _not_readable(process: Process) -> Finding:
    pid, me = process.pid, os.geteuid()
    if _is_kernel_thread(pid):
        return Finding("not_python", f"process {pid} ({_name(pid)}) is a thread of the kernel", _rank_advice(process))
    if process.uid != me != 0:
        owner = "root" if process.uid == 0 else f"uid {process.uid}"
        fix = "run with sudo" if process.uid == 0 else "run as that user, or with sudo"
        return Finding("other_user", f"process {pid} belongs to {owner}, you are uid {me}", fix)
    run = "start the job under `gpuwatch run`, which needs no tracing"
    if me != 0 and Path(f"/proc/{pid}/maps").stat().st_uid != process.uid:
        sentence = f"process {pid} forbids being looked into (PR_SET_DUMPABLE is 0)"
        return Finding("not_dumpable", sentence, f"run with sudo, or {run}")
    if _capabilities(pid, "CapPrm") & ~_capabilities(os.getpid(), "CapEff") and not _capable(_CAP_SYS_PTRACE):
        sentence = f"process {pid} ({_name(pid)}) has privileges that you do not have"
        return Finding("permission", sentence, f"add the capability SYS_PTRACE to this container, or {run}")
    sentence = f"the kernel does not let you look into process {pid} ({_name(pid)}){_security_module(pid)}"
    if me == 0:
        return Finding("permission", sentence, f"attach from outside this container or sandbox, or {run}")
    return Finding("permission", sentence, f"run with sudo, or {run}")


def _is_kernel_thread(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return bool(int(stat[stat.rindex(")") + 2 :].split()[6]) & 0x200000)  # PF_KTHREAD


def _permission(process: Process) -> list[Finding]:
    """Yama's rule, where it is stricter than the owner's. Tracing rights in full are the kernel's to say, at the attach."""
    try:
        scope = int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return []
    if process.hooked or (scope < 3 and _capable(_CAP_SYS_PTRACE)):
        return []
    run = "start the job under `gpuwatch run`, which needs no tracing"
    if scope == 3:
        return [Finding("yama", "this system allows no tracing until it is booted again (ptrace_scope 3)", run)]
    if scope == 2 or (scope == 1 and os.getpid() not in _ancestors(process.pid)):
        rule = "administrators" if scope == 2 else "a parent process"
        return [Finding("yama", f"this system lets only {rule} trace (ptrace_scope {scope})", f"run with sudo, or {run}")]
    return []


def _rank_advice(process: Process) -> str:
    ranks = []
    for child in children(process.pid):
        try:
            found = read_process(child)
        except (OSError, ValueError, KeyError):
            continue
        trains = (found.torch and not launchers.is_worker(found)) or "RANK" in found.ranks
        if found.python and trains and not launchers.starts_ranks(found):
            ranks.append(child)
    if not ranks:
        return "give the pid of the training process (`gpuwatch ps` lists them)"
    listed = ", ".join(map(str, ranks[:8])) + (" ..." if len(ranks) > 8 else "")
    return f"its training processes are {listed}: attach to those, or use --tree {process.pid}"


def _capable(capability: int) -> bool:
    return bool(_capabilities(os.getpid(), "CapEff") >> capability & 1)


def _capabilities(pid: int, which: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(which + ":"):
            return int(line.split()[1], 16)
    return 0


def _ancestors(pid: int) -> list[int]:
    found: list[int] = []
    while pid > 1 and len(found) < 64:
        try:
            pid = read_process(pid).parent
        except (OSError, ValueError, KeyError):
            break
        found.append(pid)
    return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "gone"


def _security_module(pid: int) -> str:
    try:
        profile = Path(f"/proc/{pid}/attr/current").read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""
    return f" (its security profile is {profile})" if profile and profile != "unconfined" else ""
