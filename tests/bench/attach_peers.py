"""Other ways into a running Python, for bench_attach: the command of each, and how it shows that its code ran."""

import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

#: A tool that has not come back by now has hung.
PATIENCE_SECONDS = 60


class Peer(NamedTuple):
    """`command(pid, marker)`: the argument list; `marker`: a file that its code makes (`marks`), else only exit 0 tells."""

    name: str
    command: object
    marks: bool


def available(venv):
    """The peers that are here. `venv`: a folder with hypno, memray and debugpy installed, or None."""
    found = []
    if shutil.which("gdb"):
        found += [Peer("gdb, GILState at any stop", _gdb_naive, True), Peer("gdb, break at PyCallable_Check", _gdb_safe, True)]
    tools = Path(venv or "/nonexistent") / "bin"
    if (tools / "hypno").exists():
        found.append(Peer("hypno", lambda pid, marker: [str(tools / "hypno"), str(pid), _code(marker)], True))
    if (tools / "debugpy").exists():
        call = [str(tools / "debugpy"), "--listen", "127.0.0.1:0", "--pid"]
        found.append(Peer("debugpy", lambda pid, _marker: [*call, str(pid)], False))
    if (tools / "py-spy").exists():
        found.append(Peer("py-spy dump (looks only)", lambda pid, _: [str(tools / "py-spy"), "dump", "--pid", str(pid)], False))
    if (tools / "memray").exists():
        found.append(Peer("memray (attach, detach)", lambda pid, marker: _memray(tools, pid, marker), False))
    return found


def attach(peer, pid, marker):
    """(whether its code ran, seconds it took; None: it hung)."""
    began = time.perf_counter()
    tool = subprocess.Popen(peer.command(pid, marker), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        code = tool.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        tool.kill()
        tool.wait()
        return False, None
    took = time.perf_counter() - began
    if not peer.marks:
        return code == 0, took
    deadline = time.monotonic() + 2
    while not marker.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return marker.exists(), took


def _code(marker):
    return f"open('{marker}', 'w').close()"


def _gdb(pid, *commands):
    call = ["gdb", "-p", str(pid), "-batch", "-nx", "-iex", "set auto-solib-add off", "-iex", "set debuginfod enabled off"]
    call += ["-ex", "sharedlibrary libpython"]
    return call + [word for command in commands for word in ("-ex", command)]


def _gdb_naive(pid, marker):
    return _gdb(
        pid,
        "set $state = (int)PyGILState_Ensure()",
        f'call (int)PyRun_SimpleString("{_code(marker)}")',
        "call (void)PyGILState_Release($state)",
        "detach",
    )


def _gdb_safe(pid, marker):
    return _gdb(
        pid,
        "break PyCallable_Check",
        "call (int)Py_AddPendingCall((void*)PyCallable_Check, (void*)0)",
        "continue",
        "delete",
        f'call (int)PyRun_SimpleString("{_code(marker)}")',
        "detach",
    )


def _memray(tools, pid, marker):
    memray = str(tools / "memray")
    return ["sh", "-c", f"{memray} attach -f -o {marker} {pid} && {memray} detach {pid}"]
