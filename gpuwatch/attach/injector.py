"""Make a running CPython call `PyRun_SimpleString(text)` between two of its bytecodes, without stopping it for long.

The recipe (docs/attach.md tells how each step was measured):

1. everything that needs files is looked up before the thread is stopped;
2. the main thread is stopped, and a signal-return frame is written below its stack's red zone;
3. one mmap system call gives a page range of our own; it returns into that frame, should we die here;
4. text, a second frame and a small stack go into the range; the thread calls Py_AddPendingCall on that stack;
5. where it would return through the frame we put all registers back ourselves (this way even a sleep that we interrupted goes
   on with the rest of its time) and let go. Had we been killed, the frame would have done it.

No byte of code is written, no allocator and no Python runs at the stop: Py_AddPendingCall only files the call, and the
interpreter makes it later with its lock held. A SIGKILL of this process at any instant leaves the thread on its way home.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple, TypeVar

from gpuwatch.attach.detour import Detour, FaultError
from gpuwatch.attach.entry import MAX_AREA_BYTES, ElsewhereError, EntryPoints, InjectError, resolve
from gpuwatch.attach.loader import FILLED_AT
from gpuwatch.attach.process import started
from gpuwatch.attach.ptrace import TargetExitedError, Tracee

_PROT_READ_WRITE = 3
_PRIVATE_ANONYMOUS_FIXED_NOREPLACE = 0x2 | 0x20 | 0x100000
_STACK_BYTES, _TEXT_BYTES = 64 * 1024, 64 * 1024
#: Where the blob lies in the area.
BLOB_AT = 512
_ATTEMPTS, _BETWEEN_ATTEMPTS_SECONDS = 5, 0.003
_Result = TypeVar("_Result")


class Injection(NamedTuple):
    """What it took, and where the thread was."""

    stopped_microseconds: float
    resolve_microseconds: float
    area: int  # address and size of the mapping that the text lies in, which `release` unmaps; its first bytes are the report
    area_bytes: int
    interpreter: str
    found_in: str  # the mapped file whose code the thread was running, by name; "" when it was none


def inject(
    pid: int,
    make_text: Callable[[int, int], str],
    start_ticks: int | None = None,
    call_timeout_seconds: float = 1.0,
    blob: bytes = b"",
) -> Injection:
    """File a text as a pending call of the main thread of `pid`. It runs when that thread next reaches bytecode.

    `make_text(address, bytes)` gives the text, which is told where the mapping lies in the target and how large it is. First in
    it are loader.REPORT_BYTES of zeros to report in; `blob` lies at BLOB_AT as soon as the byte at FILLED_AT is 1.
    It runs in the target's `__main__`: it must keep its names to itself and let nothing escape (payload.py sees to both).
    With `start_ticks` (from its stat) another process that has been given the same pid meanwhile is left alone.
    Raises InjectError or OSError (EPERM: the kernel refuses); the target is unharmed in every case.
    """
    began = time.perf_counter_ns()
    entry = resolve(pid)
    if len(blob) > MAX_AREA_BYTES // 4 * 3:
        raise InjectError(f"{len(blob)} bytes are too many")
    area_bytes = (BLOB_AT + len(blob) + _STACK_BYTES + _TEXT_BYTES + 4095) & -4096
    payload = make_text(entry.free, area_bytes).encode() + b"\0"
    resolved = time.perf_counter_ns()

    def work(thread: Tracee, memory: int) -> tuple[int, int]:
        if start_ticks is not None and started(pid) != start_ticks:  # asked once it is ours: from then on its number is kept
            raise InjectError(f"process {pid} has ended, and another one has its number")
        return _file_call(thread, memory, entry, (len(blob), payload, area_bytes), call_timeout_seconds)

    stopped_ns, instruction = persistently(pid, work)
    if blob:
        _fill(pid, entry.free, blob)
    code = next((m.path for m in entry.mappings if m.start <= instruction < m.end), "")
    found_in = os.path.basename(code) if code.startswith("/") else ""
    return Injection(stopped_ns / 1e3, (resolved - began) / 1e3, entry.free, area_bytes, entry.interpreter, found_in)


def release(pid: int, area: int, area_bytes: int, call_timeout_seconds: float = 1.0) -> float:
    """Unmap the area once its text has run; microseconds that the thread stood still. Raises as `inject` does."""
    entry = resolve(pid)
    range_bytes = (area, area_bytes)
    stopped_ns = persistently(pid, lambda thread, memory: _unmap(thread, memory, entry, range_bytes, call_timeout_seconds))
    return stopped_ns / 1e3


def persistently(pid: int, work: Callable[[Tracee, int], _Result]) -> _Result:
    """`work(thread, memory)` on the seized main thread, again where it met with something that passes and changed nothing."""
    for attempt in range(_ATTEMPTS):
        try:
            with _seized(pid) as (thread, memory):
                return work(thread, memory)
        except (ElsewhereError, FaultError) as error:
            if attempt + 1 == _ATTEMPTS or not getattr(error, "harmless", True):
                raise
        time.sleep(_BETWEEN_ATTEMPTS_SECONDS)
    raise AssertionError


def _unmap(thread: Tracee, memory: int, entry: EntryPoints, area: tuple[int, int], timeout_seconds: float) -> int:
    detour = Detour(thread, memory, entry, timeout_seconds)
    with detour.brought_home():
        detour.system_call(entry.machine.munmap, *area)
    return detour.go_home()


@contextmanager
def _seized(pid: int) -> Iterator[tuple[Tracee, int]]:
    """The main thread of `pid` as a tracee (not stopped yet) and a descriptor of its memory; let go of at the end."""
    memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    try:
        with _signals_held(), _first_in_line():
            thread = Tracee(pid)
            try:
                yield thread, memory
            finally:
                with suppress(OSError):  # it ended, or was never stopped: nothing of ours is left either way
                    thread.detach()
    except TargetExitedError as error:
        raise InjectError(str(error)) from None
    finally:
        os.close(memory)


def _file_call(
    thread: Tracee, memory: int, entry: EntryPoints, given: tuple[int, bytes, int], timeout_seconds: float
) -> tuple[int, int]:
    """Map an area for a blob of so many bytes and the text, file the call; nanoseconds that the thread stood, and where."""
    blob_bytes, text, area_bytes = given
    detour = Detour(thread, memory, entry, timeout_seconds)
    stack_top = entry.free + BLOB_AT + blob_bytes + _STACK_BYTES
    with detour.brought_home():
        if detour.room + len(text) + 64 > _TEXT_BYTES:
            raise InjectError(f"a text of {len(text)} bytes is too long")
        mapped = detour.system_call(
            entry.machine.mmap,
            entry.free,
            area_bytes,
            _PROT_READ_WRITE,
            _PRIVATE_ANONYMOUS_FIXED_NOREPLACE,
            (1 << 64) - 1,
            0,
        )
        if mapped != entry.free:
            error = os.strerror(-(mapped - (1 << 64)) & 0xFFF)
            raise InjectError(f"the target could not map {area_bytes} bytes ({error})")
        detour.call(entry.add_pending_call, entry.run_simple_string, text, stack_top)
    return detour.go_home(), detour.place[2]


def _fill(pid: int, area: int, blob: bytes) -> None:
    """Write the blob into the area, while the thread runs on: its hundreds of kilobytes held it up for 0.3 ms."""
    memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    try:
        if os.pwrite(memory, blob, area + BLOB_AT) != len(blob) or os.pwrite(memory, b"\1", area + FILLED_AT) != 1:
            raise InjectError("the target's memory could not be written")
    finally:
        os.close(memory)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Keep Ctrl-C from stretching the stop: it is delivered afterwards."""
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextmanager
def _first_in_line() -> Iterator[None]:
    """Where we may, run before all others for these microseconds: while we wait for a core, the job stands still.

    With four busy processes a core the job was stopped for 8 to 20 ms at p99 without this, for 1 to 4 ms with it.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:  # not root: as it comes
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)
