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
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from gpuwatch.attach import sigframe
from gpuwatch.attach.elf import EM_X86_64, ElfError, find_symbols
from gpuwatch.attach.maps import Mapping, free_range, load_bias, open_mapped, read_maps
from gpuwatch.attach.ptrace import Stop, TargetExitedError, Tracee

_NOT_IN_SYSCALL = (1 << 64) - 1
_NR_MMAP, _NR_RT_SIGRETURN = 9, 15
_PROT_READ_WRITE = 3
_MAP_PRIVATE_ANONYMOUS_FIXED_NOREPLACE = 0x2 | 0x20 | 0x100000
_RED_ZONE_BYTES = 128
_STACK_BYTES = 64 * 1024
_MAX_AREA_BYTES = 4 << 20
_DIRECTION_FLAG = 0x400
_SYSCALL_RET = b"\x0f\x05\xc3"
_RESTORE_RT = b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05"  # mov rax, 15; syscall: what every libc returns to after a signal handler
_NEEDED = ("Py_AddPendingCall", "PyRun_SimpleString")


class InjectError(Exception):
    """The text was not filed; the target goes on as before."""


class EntryPoints(NamedTuple):
    """Addresses in the target, resolved before it is stopped."""

    add_pending_call: int
    run_simple_string: int
    syscall_ret: int
    restore_rt: int
    interpreter: str  # the mapped file that exports the C API
    free: int  # where the target had room when it was looked at; taken by somebody since, the kernel says so


class Injection(NamedTuple):
    """What it took."""

    stopped_microseconds: float
    resolve_microseconds: float
    area: int  # address and size of the mapping that stays behind until detach unmaps it
    area_bytes: int
    interpreter: str


def resolve(pid: int) -> EntryPoints:
    """Find the C API and two instruction sequences of libc in the target. Raises InjectError, or OSError when it is gone."""
    mappings = read_maps(pid)
    symbols, interpreter = _find_c_api(pid, mappings)
    gadgets = _find_gadgets(pid, mappings)
    free = free_range(mappings, _MAX_AREA_BYTES)
    return EntryPoints(symbols["Py_AddPendingCall"], symbols["PyRun_SimpleString"], *gadgets, interpreter, free)


def _find_c_api(pid: int, mappings: list[Mapping]) -> tuple[dict[str, int], str]:
    executable = os.readlink(f"/proc/{pid}/exe")
    files = {m.path: m for m in reversed(mappings) if m.path.startswith("/") and m.offset == 0}
    # libpython first: a shared build's executable is a shell around it. Then the executable (Debian's, conda's layout).
    order = sorted(files, key=lambda path: (not os.path.basename(path).startswith("libpython"), path != executable))
    for path in order:
        name = os.path.basename(path)
        if not (name.startswith("libpython") or path == executable):
            break
        try:
            with open_mapped(pid, files[path]) as file:
                symbols = find_symbols(file, _NEEDED)
        except (OSError, ElfError):
            continue
        if len(symbols.addresses) == len(_NEEDED):
            if symbols.machine != EM_X86_64:
                raise InjectError(f"{name} is not x86-64 code: only that is supported so far")
            bias = load_bias(mappings, path, symbols.first_load_vaddr)
            return {key: value + bias for key, value in symbols.addresses.items()}, path
    raise InjectError(f"{executable} exports no CPython C API: not a Python process, or a build that hides it")


def _find_gadgets(pid: int, mappings: list[Mapping]) -> tuple[int, int]:
    code = [m for m in mappings if "x" in m.permissions and m.path.startswith("/")]
    code.sort(key=lambda m: not os.path.basename(m.path).startswith(("libc.so", "libc-", "ld-musl", "libpthread")))
    found: dict[bytes, int] = {}
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for mapping in code:
            image = os.pread(memory.fileno(), mapping.end - mapping.start, mapping.start)
            for pattern in (_SYSCALL_RET, _RESTORE_RT):
                at = image.find(pattern)
                if at >= 0:
                    found.setdefault(pattern, mapping.start + at)
            if len(found) == 2:
                return found[_SYSCALL_RET], found[_RESTORE_RT]
    raise InjectError("no libc that we know in the target")


def inject(pid: int, text: str, call_timeout_seconds: float = 1.0) -> Injection:
    """File `text` as a pending call of the main thread of `pid`. It runs when that thread next reaches bytecode.

    `text` runs in the target's `__main__`: it must keep its names to itself and let nothing escape (payload.py sees to both).
    Raises InjectError or OSError (EPERM: the kernel refuses); the target is unharmed in every case.
    """
    began = time.perf_counter_ns()
    payload = text.encode() + b"\0"
    if len(payload) > _MAX_AREA_BYTES // 2:
        raise InjectError(f"a text of {len(payload)} bytes is too long")
    entry = resolve(pid)
    memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    try:
        with _signals_held():
            thread = Tracee(pid)
            resolved = time.perf_counter_ns()
            try:
                area, area_bytes, stopped_ns = _detour(thread, memory, entry, payload, call_timeout_seconds)
            finally:
                with suppress(OSError):  # it ended, or was never stopped: nothing of ours is left either way
                    thread.detach()
    except TargetExitedError as error:
        raise InjectError(str(error)) from None
    finally:
        os.close(memory)
    return Injection(stopped_ns / 1e3, (resolved - began) / 1e3, area, area_bytes, entry.interpreter)


def _detour(thread: Tracee, memory: int, entry: EntryPoints, payload: bytes, timeout: float) -> tuple[int, int, int]:
    thread.interrupt()
    while not (stop := thread.wait()).interrupted:
        thread.resume(stop.signal)
    stopped = time.perf_counter_ns()
    before = thread.registers()
    vectors = thread.vector_state()
    home = sigframe.resumed(before)
    mask = thread.signal_mask()
    room = sigframe.frame_bytes(vectors)
    area_bytes = (_STACK_BYTES + 64 + room + len(payload) + 4095) & -4096
    area = entry.free

    slot = _slot(before["rsp"] - _RED_ZONE_BYTES - room - 64)
    _write(memory, slot, struct.pack("<Q", entry.restore_rt) + sigframe.build(slot + 8, home, vectors, mask))
    call = before | {"rip": entry.syscall_ret, "rsp": slot, "rax": _NR_MMAP, "orig_rax": _NOT_IN_SYSCALL}
    call |= {"rdi": area, "rsi": area_bytes, "rdx": _PROT_READ_WRITE}
    call |= {"r10": _MAP_PRIVATE_ANONYMOUS_FIXED_NOREPLACE, "r8": _NOT_IN_SYSCALL, "r9": 0}
    thread.set_registers(call)
    _to_syscall(thread, _NR_MMAP, timeout)  # entry
    thread.resume_to_syscall()
    _next_syscall_stop(thread, timeout)  # exit
    result = thread.registers()["rax"]
    if result != area:
        _go_home(thread, home, vectors)
        raise InjectError(f"the target could not map {area_bytes} bytes: {os.strerror(-(result - (1 << 64)) & 0xFFF)}")

    slot = _slot(area + _STACK_BYTES)
    frame = struct.pack("<Q", entry.restore_rt) + sigframe.build(slot + 8, home, vectors, mask)
    text_address = slot + len(frame)
    _write(memory, slot, frame + payload)
    call = before | {"rip": entry.add_pending_call, "rdi": entry.run_simple_string, "rsi": text_address, "rsp": slot}
    call |= {"rax": 0, "orig_rax": _NOT_IN_SYSCALL, "eflags": before["eflags"] & ~_DIRECTION_FLAG}
    thread.set_registers(call)
    try:
        _to_syscall(thread, _NR_RT_SIGRETURN, timeout)
    except TimeoutError:
        # The interpreter's own lock around its pending calls is held at this very stop: waiting for it changed nothing.
        _go_home(thread, home, vectors)
        raise InjectError("the interpreter was filing another pending call: try again") from None
    _go_home(thread, home, vectors)
    return area, area_bytes, time.perf_counter_ns() - stopped


def _slot(address: int) -> int:
    """Where a return address lies so that the frame behind it is 16-byte aligned, as a function's entry wants it."""
    return (address & ~15) - 8


def _write(memory: int, address: int, data: bytes) -> None:
    if os.pwrite(memory, data, address) != len(data):
        raise InjectError("the target's memory could not be written")


def _go_home(thread: Tracee, home: dict[str, int], vectors: bytes) -> None:
    # At a system call's entry, orig_rax -1 skips the call and leaves rax alone: rt_sigreturn does not run, so what it would
    # forget, how to go on with an interrupted sleep, survives. Vectors first: killed in between, the frame restores both.
    thread.set_vector_state(vectors)
    thread.set_registers(home | {"orig_rax": _NOT_IN_SYSCALL})


def _to_syscall(thread: Tracee, number: int, timeout: float) -> None:
    """Run until the thread enters system call `number`; others that it makes on the way pass."""
    while True:
        thread.resume_to_syscall()
        _next_syscall_stop(thread, timeout)
        registers = thread.registers()
        # At an entry the kernel has already set rax to -ENOSYS; an exit has the result there.
        if registers["orig_rax"] == number and registers["rax"] == (-38 & (1 << 64) - 1):
            return


def _next_syscall_stop(thread: Tracee, timeout: float) -> Stop:
    with _deadline(thread, timeout):
        while True:
            stop = thread.wait()
            if stop.at_syscall:
                return stop
            if stop.interrupted:
                if _Expired.flag:
                    raise TimeoutError
                thread.resume_to_syscall()
                continue
            if stop.signal in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL):
                raise InjectError(f"the call faulted (signal {stop.signal}): the frame takes the thread home")
            thread.resume_to_syscall(stop.signal)  # its handler runs on our stack and comes back


class _Expired:
    flag = False


@contextmanager
def _deadline(thread: Tracee, seconds: float) -> Iterator[None]:
    """Interrupt the thread after `seconds`: waitpid blocks, and only a signal or a stop ends it."""
    _Expired.flag = False

    def expire(_signal: int, _frame: object) -> None:
        _Expired.flag = True
        thread.interrupt()

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Keep Ctrl-C from stretching the stop: it is delivered afterwards."""
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
