"""Have a main thread that sleeps in a system call come by the interpreter once, so that calls which wait for it are made.

A main thread in `time.sleep`, `Thread.join`, `Queue.get` or `Popen.wait` reaches no bytecode for as long as that takes, and
what is filed for it waits. Where it sleeps because the interpreter itself called a blocking function, it has given the
interpreter's lock up and holds no lock of the allocator or the linker: there, and only there, it may take the lock as any
foreign thread would (PyGILState_Ensure), run one line, in which the interpreter makes the filed calls, and go back to sleep.
The way back is on its stack before it sets off, so that nobody has to wait for it: it may have to wait for the lock.
"""

from __future__ import annotations

import os
import struct
import time
from typing import NamedTuple

from gpuwatch.attach.detour import DATA, Detour, ElsewhereError
from gpuwatch.attach.entry import InjectError, resolve, resolve_visit
from gpuwatch.attach.injector import persistently
from gpuwatch.attach.maps import Mapping, read_maps
from gpuwatch.attach.process import started
from gpuwatch.attach.ptrace import Tracee

#: System calls in which libc and the interpreter sleep for somebody else's doing, x86-64: read poll select recvfrom recvmsg
#: accept nanosleep wait4 restart_syscall clock_nanosleep epoll_wait waitid pselect6 ppoll epoll_pwait accept4.
_SLEEPS = frozenset((0, 7, 23, 35, 43, 45, 47, 61, 219, 230, 232, 247, 270, 271, 281, 288))
_FUTEX, _FUTEX_WAIT_BITSET, _FUTEX_COMMAND_MASK = 202, 9, 0x7F  # semaphores and conditions; locks of libc itself use another
_SAMPLED_AGAIN_SECONDS = 0.03
_STACK_BYTES = 512
_LIBC = ("libc.so", "libc-", "libpthread", "ld-musl")
_LINE = b"(lambda: 0)()\0"


class Asleep(NamedTuple):
    """A thread in a system call: its number, six arguments, stack and instruction pointer."""

    number: int
    arguments: tuple[int, ...]
    stack: int
    instruction: int


def asleep(pid: int) -> Asleep | None:
    """The system call that the main thread is in, or None when it runs or may not be seen."""
    try:
        with open(f"/proc/{pid}/syscall", encoding="ascii") as file:
            words = file.read().split()
        if len(words) != 9:
            return None
        numbers = [int(word, 16) for word in words[1:]]
        return Asleep(int(words[0]), tuple(numbers[:6]), *numbers[6:])
    except (OSError, ValueError):
        return None


def may_visit(pid: int) -> Asleep | None:
    """Where the main thread sleeps, when it is a place from which it may visit the interpreter, and stays there; else None."""
    first = asleep(pid)
    if first is None or not _is_sleep(first) or not _called_by_interpreter(pid, first) or _has_shadow_stack(pid):
        return None
    time.sleep(_SAMPLED_AGAIN_SECONDS)
    return first if asleep(pid) == first else None


def visit(pid: int, start_ticks: int, seen: Asleep) -> float:
    """Send the main thread, which `may_visit` has `seen`, to the interpreter and back; microseconds that it was held.

    Raises InjectError (ElsewhereError: it has moved on) or OSError.
    """
    entry, points = resolve(pid), resolve_visit(pid)
    nothing = points.pop_rdi_ret + 1  # its `ret` alone: keeps the stack aligned
    words = (
        points.ensure,
        points.pop_rdi_ret,
        DATA,
        nothing,
        points.run_simple_string,
        points.pop_rdi_ret,
        1,  # PyGILState_UNLOCKED: what Ensure has found, or we would not be here
        nothing,
        points.release,
    )

    def work(thread: Tracee, memory: int) -> int:
        if started(pid) != start_ticks:
            raise InjectError(f"process {pid} has ended, and another one has its number")
        detour = Detour(thread, memory, entry, 1.0)
        number, stack, instruction = detour.place
        if (stack, instruction) != (seen.stack, seen.instruction) or number not in (seen.number, 219):
            raise ElsewhereError("the main thread has woken up")
        return detour.set_off(words, _LINE)

    return persistently(pid, work) / 1e3


def _is_sleep(seen: Asleep) -> bool:
    if seen.number == _FUTEX:
        return seen.arguments[1] & _FUTEX_COMMAND_MASK == _FUTEX_WAIT_BITSET
    return seen.number in _SLEEPS


def _called_by_interpreter(pid: int, seen: Asleep) -> bool:
    """Whether the return addresses nearest on the stack lie in libc and the interpreter alone; what is left there of earlier
    calls may make this say no where it is, but not yes where it is not."""
    mappings = read_maps(pid)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        raw = os.pread(memory.fileno(), _STACK_BYTES, seen.stack)
        callers = [
            mapping
            for (word,) in struct.iter_unpack("<Q", raw[: len(raw) // 8 * 8])
            if (mapping := _code_at(mappings, word)) and _follows_call(os.pread(memory.fileno(), 7, word - 7))
        ]
    executable = os.readlink(f"/proc/{pid}/exe")
    own = [_is_interpreter(mapping.path, executable) for mapping in callers]
    return any(own) and all(
        mine or os.path.basename(mapping.path).startswith(_LIBC) for mine, mapping in zip(own, callers, strict=True)
    )


def _is_interpreter(path: str, executable: str) -> bool:
    return path == executable or os.path.basename(path).startswith("libpython") or "/lib-dynload/" in path


def _code_at(mappings: list[Mapping], address: int) -> Mapping | None:
    return next((m for m in mappings if m.start + 7 <= address < m.end and "x" in m.permissions), None)


def _follows_call(before: bytes) -> bool:
    """Whether the seven bytes before an address end in a call instruction: e8 rel32, or ff /2 in its short and long forms."""
    if len(before) < 7:
        return False
    direct = before[2] == 0xE8
    return direct or any(before[-n] == 0xFF and before[-n + 1] >> 3 & 7 == 2 for n in (2, 3, 4, 6, 7))


def _has_shadow_stack(pid: int) -> bool:
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:
        return any(line.startswith("x86_Thread_features:") and "shstk" in line for line in lines)
