"""Why a process cannot be attached to, in one sentence with the way out; found before anything is touched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

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


def hidden_socket(process: Process, socket_path: str) -> Finding | None:
    """The daemon's socket must be the same file in the target's mount namespace, where its hooks will look for it."""
    try:
        ours = os.stat(socket_path)
    except OSError:
        return None  # no daemon yet: nothing to compare with
    try:
        theirs = os.stat(f"/proc/{process.pid}/root{seen_from(process.pid, socket_path)}")
    except PermissionError:
        return None
    except OSError:
        theirs = None
    if theirs is not None and (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
        return None
    sentence = f"process {process.pid} has another file system: the daemon's socket {socket_path} is not visible in it"
    fix = f"mount {os.path.dirname(socket_path)} into its container at the same path, or run a daemon inside with --socket"
    return Finding("hidden_socket", sentence, fix)


def _hopeless(process: Process) -> list[Finding]:
    """What makes every other question pointless."""
    pid = process.pid
    if process.state == "Z":
        return [Finding("zombie", f"process {pid} has ended and waits for its parent", "nothing is left to attach to")]
    if pid == os.getpid():
        return [Finding("self", f"process {pid} is this command itself", "give the pid of the training process")]
    if not process.readable:
        return [_not_readable(process)]
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
    if process.launcher:
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
    if version < REMOTE_DEBUG_PYTHON and os.uname().machine != "x86_64":
        sentence = f"attaching to Python older than 3.14 is built for x86-64; this is {os.uname().machine}"
        findings.append(Finding("architecture", sentence, "start the job under `gpuwatch run`"))
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


def _not_readable(process: Process) -> Finding:
    pid, me = process.pid, os.geteuid()
    if process.uid not in (me, 0) and me != 0:
        sentence = f"process {pid} belongs to uid {process.uid}, you are {me}"
        return Finding("other_user", sentence, "run as that user, or with sudo")
    if Path(f"/proc/{pid}/maps").stat().st_uid != process.uid:
        sentence = f"process {pid} forbids being looked into (PR_SET_DUMPABLE is 0)"
        return Finding("not_dumpable", sentence, "run with sudo, or start the job under `gpuwatch run`")
    sentence = f"the kernel does not let you look into process {pid}"
    return Finding(
        "permission", sentence, f"run with sudo{_security_module(pid)}; in a container add the capability SYS_PTRACE"
    )


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
        if found.python and (found.torch or "RANK" in found.ranks) and not found.launcher:
            ranks.append(child)
    if not ranks:
        return "give the pid of the training process (`gpuwatch ps` lists them)"
    listed = ", ".join(map(str, ranks[:8])) + (" ..." if len(ranks) > 8 else "")
    return f"its training processes are {listed}: attach to those, or use --tree {process.pid}"


def _capable(capability: int) -> bool:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False


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
