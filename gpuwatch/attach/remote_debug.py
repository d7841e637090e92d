"""Ask a CPython 3.14 to run a script, by the interpreter's own remote debugging interface (PEP 768), from any Python version.

The interpreter publishes where its fields lie in the section `.PyRuntime`; a request is a path, a flag and one bit in the main
thread's eval breaker. The owner of the target may have switched the interface off, and then the answer is no.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from gpuwatch.attach import placed_file
from gpuwatch.attach.elf import ElfError, find_symbols
from gpuwatch.attach.entry import InjectError
from gpuwatch.attach.maps import load_bias, open_mapped, read_maps
from gpuwatch.attach.process import Process
from gpuwatch.attach.ptrace import Tracee

#: Layouts that were checked against a real interpreter; for any other version the ptrace injector is used. Never a guess.
VERSIONS = ((3, 14),)
_COOKIE = b"xdebugpy"
_WORDS = 95
_SCRIPT_PATH_BYTES = 512
_PLEASE_STOP_BIT = 1 << 5


class _Layout(NamedTuple):
    """Offsets out of CPython 3.14's _Py_DebugOffsets, by their place (in 64-bit words) in that struct."""

    interpreters_head: int
    threads_main: int
    eval_breaker: int
    support: int
    enabled: int
    pending: int
    path: int


_PLACES_3_14 = _Layout(5, 10, 89, 90, 91, 92, 93)
_PATH_SIZE_PLACE = 94


class DisabledError(InjectError):
    """The target's owner has switched remote debugging off."""


def request(process: Process, make_script: Callable[[int, str], bytes], blob: bytes = b"") -> tuple[int, float]:
    """Have the main thread of `process` run `make_script(address, path)` (Python source) between two of its bytecodes.

    The address, also returned, is where the script may report: the buffer that its own path came in, read by then. The path is
    that of a file which holds `blob`, for the script to read and remove. The second result is for how many microseconds the
    thread stood still.
    Raises DisabledError (honour it), InjectError, or OSError as the kernel answers.
    """
    memory = os.open(f"/proc/{process.pid}/mem", os.O_RDWR)
    try:
        runtime = _runtime_address(process.pid)
        layout = _read_layout(memory, runtime, process)
        interpreter = _word(memory, runtime + layout.interpreters_head)
        (enabled,) = struct.unpack("<i", os.pread(memory, 4, interpreter + layout.enabled))
        if enabled != 1:
            raise DisabledError(
                f"process {process.pid} was started with remote debugging switched off: its owner said no "
                "(--method ptrace goes in nevertheless)"
            )
        thread = _word(memory, interpreter + layout.threads_main)
        if not thread:
            raise InjectError("the interpreter has no main thread")
        support = thread + layout.support
        packed = placed_file.place(process, lambda _: blob) if blob else ""
        script = make_script(support + layout.path, packed)
        path = placed_file.place(process, lambda path: b"import os; os.unlink(%r)\n" % path + script)
        with _stopped(process.pid) as began_ns:  # only so that the bit which we set is not lost to one that the thread sets
            os.pwrite(memory, path.encode() + b"\0", support + layout.path)
            os.pwrite(memory, struct.pack("<i", 1), support + layout.pending)
            breaker = _word(memory, thread + layout.eval_breaker)
            os.pwrite(memory, struct.pack("<Q", breaker | _PLEASE_STOP_BIT), thread + layout.eval_breaker)
            stopped_ns = time.perf_counter_ns() - began_ns
        return support + layout.path, stopped_ns / 1e3
    finally:
        os.close(memory)


def _runtime_address(pid: int) -> int:
    executable = os.readlink(f"/proc/{pid}/exe")
    mappings = read_maps(pid)
    files = {m.path: m for m in reversed(mappings) if m.path.startswith("/") and m.offset == 0}
    shared = [path for path in files if os.path.basename(path).startswith("libpython")]
    for path in [*shared, executable]:
        with suppress(OSError, ElfError, KeyError):
            with open_mapped(pid, files[path]) as file:
                symbols = find_symbols(file, ["_PyRuntime"])
            if symbols.addresses:
                return symbols.addresses["_PyRuntime"] + load_bias(mappings, path, symbols.first_load_vaddr)
    raise InjectError(f"{executable} does not say where its runtime state lies")


def _read_layout(memory: int, runtime: int, process: Process) -> _Layout:
    raw = os.pread(memory, 8 * _WORDS, runtime)
    if len(raw) < 8 * _WORDS or raw[:8] != _COOKIE:
        raise InjectError("the interpreter's debug offsets are not where they should be")
    words = struct.unpack(f"<{_WORDS}Q", raw)
    version = (words[1] >> 24, words[1] >> 16 & 0xFF)
    if version not in VERSIONS or version != process.python or words[_PATH_SIZE_PLACE] != _SCRIPT_PATH_BYTES:
        raise InjectError(f"the debug offsets of Python {version[0]}.{version[1]} are not known here")
    layout = _Layout(*(words[place] for place in _PLACES_3_14))
    if max(layout) > 1 << 20:
        raise InjectError("the interpreter's debug offsets make no sense")
    return layout


def _word(memory: int, address: int) -> int:
    return int(struct.unpack("<Q", os.pread(memory, 8, address))[0])


@contextmanager
def _stopped(pid: int) -> Iterator[int]:
    thread = Tracee(pid)
    try:
        thread.interrupt()
        while not (stop := thread.wait()).interrupted:
            thread.resume(stop.signal)
        yield time.perf_counter_ns()
    finally:
        thread.detach()
