"""The last way in, for machines that the injector is not built for: gdb, by the one recipe that has harmed no job.

gdb stops every thread, for some 0.3 s, and writes a breakpoint into the interpreter's code. Calling into Python wherever the
main thread happens to be has hung and killed jobs (docs/attach.md has the counts); so the interpreter is asked to make a
harmless call between two bytecodes, PyCallable_Check, and only there, with its lock held, the text is run.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress

from gpuwatch.attach import placed_file
from gpuwatch.attach.entry import InjectError
from gpuwatch.attach.process import Process

_COMMANDS = """
set breakpoint pending off
break *PyCallable_Check
set $filed = (int)Py_AddPendingCall((void*)PyCallable_Check, (void*)0)
continue
delete
if $pc == (unsigned long)PyCallable_Check
  call (int)PyRun_SimpleString("exec((lambda file: (file.read(), file.close())[0])(open('{path}')), {{}})")
end
detach
quit
"""
# A file that is left to be closed by itself would leave a warning's registry among the names of the job's main module.
#: After an interrupt gdb takes its breakpoint out and lets go; killed before that, it would leave the job to die of it.
_LETTING_GO_SECONDS = 30.0


def available() -> bool:
    """Whether there is a gdb here."""
    return shutil.which("gdb") is not None


def request(
    process: Process, make_script: Callable[[str, str], bytes], blob: bytes, timeout_seconds: float
) -> tuple[str, float, bool]:
    """Have the main thread run `make_script(report, path)`; both are files in its root, to report in and holding `blob`.

    Gives the report's path, for how many microseconds gdb was at it, and whether it came to run the script. Raises InjectError.
    """
    if not available():
        raise InjectError("there is no gdb here")
    report = placed_file.place(process, lambda _: b"")
    packed = placed_file.place(process, lambda _: blob) if blob else ""
    script = placed_file.place(process, lambda path: b"import os; os.unlink(%r)\n" % path + make_script(report, packed))
    with tempfile.NamedTemporaryFile("w", suffix=".gdb") as commands:
        commands.write(_COMMANDS.format(path=script))
        commands.flush()
        began = time.perf_counter()
        _run(process.pid, commands.name, timeout_seconds)
        took = (time.perf_counter() - began) * 1e6
    ran = not os.path.exists(placed_file.outside(process, script))
    if not ran:
        for path in filter(None, (script, packed)):
            with suppress(OSError):
                os.unlink(placed_file.outside(process, path))
    return report, took, ran


def _run(pid: int, commands: str, timeout_seconds: float) -> None:
    call = ["gdb", "-p", str(pid), "-batch", "-nx", "-iex", "set auto-solib-add off", "-iex", "set debuginfod enabled off"]
    call += ["-ex", "sharedlibrary libpython", "-x", commands]
    debugger = subprocess.Popen(
        call, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    )
    try:
        said, _ = debugger.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        debugger.send_signal(signal.SIGINT)
        try:
            debugger.communicate(timeout=_LETTING_GO_SECONDS)
        except subprocess.TimeoutExpired:
            raise InjectError(
                f"gdb (process {debugger.pid}) does not let go of process {pid}: end it by hand, not by -9"
            ) from None
        return
    if debugger.returncode:
        raise InjectError(f"gdb could not do it: {said.strip().splitlines()[-1] if said.strip() else debugger.returncode}")
