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

from gpuwatch.attach.detour import Detour
from gpuwatch.attach.entry import ElsewhereError, InjectError, resolve_visit, runtime_state
from gpuwatch.attach.injector import persistently
from gpuwatch.attach.machine import DATA, Machine
from gpuwatch.attach.machines import here
from gpuwatch.attach.maps import Mapping, read_maps
from gpuwatch.attach.process import started
from gpuwatch.attach.ptrace import Tracee

_FUTEX_WAIT_BITSET, _FUTEX_COMMAND_MASK = 9, 0x7F  # semaphores and conditions; locks of libc itself use another
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
    first, machine = asleep(pid), here()
    if first is None or machine is None or not _is_sleep(first, machine):
        return None
    if not _called_by_interpreter(pid, first, machine) or machine.has_shadow_stack(pid):
        return None
    if _waits_for_interpreter(pid, first, machine):
        return None
    time.sleep(_SAMPLED_AGAIN_SECONDS)
    return first if asleep(pid) == first else None


def visit(pid: int, start_ticks: int, seen: Asleep) -> float:
    """Send the main thread, which `may_visit` has `seen`, to the interpreter and back; microseconds that it was held.

    Raises InjectError (ElsewhereError: it has moved on) or OSError.
    """
    entry, points = resolve_visit(pid)
    calls = (
        (points.ensure, None),
        (points.run_simple_string, DATA),
        (points.release, 1),  # PyGILState_UNLOCKED: what Ensure has found, or we would not be here
    )

    def work(thread: Tracee, memory: int) -> int:
        if started(pid) != start_ticks:
            raise InjectError(f"process {pid} has ended, and another one has its number")
        detour = Detour(thread, memory, entry, 1.0)
        number, stack, instruction = detour.place
        if (stack, instruction) != (seen.stack, seen.instruction) or number not in (seen.number, entry.machine.restart_syscall):
            raise ElsewhereError("the main thread has woken up")
        return detour.set_off(calls, _LINE)

    return persistently(pid, work) / 1e3


def _is_sleep(seen: Asleep, machine: Machine) -> bool:
    if seen.number == machine.futex:
        return seen.arguments[1] & _FUTEX_COMMAND_MASK == _FUTEX_WAIT_BITSET
    return seen.number in machine.sleeps


def _waits_for_interpreter(pid: int, seen: Asleep, machine: Machine) -> bool:
    """Whether it waits for the interpreter's own lock, which it will have soon.

    A visit takes and gives that lock by the very condition that the thread waits at: it would wait for itself for ever. It
    did, once in some 15 attaches to a job whose other thread imported on a busy machine.
    """
    if seen.number != machine.futex:
        return False
    try:
        return seen.arguments[0] in runtime_state(pid, read_maps(pid), machine)
    except InjectError:  # an interpreter that does not say where: then it is not visited while it waits for any lock
        return True


def _called_by_interpreter(pid: int, seen: Asleep, machine: Machine) -> bool:
    """Whether the return addresses nearest on the stack lie in libc and the interpreter alone; what is left there of earlier
    calls may make this say no where it is, but not yes where it is not."""
    mappings = read_maps(pid)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        raw = os.pread(memory.fileno(), _STACK_BYTES, seen.stack)
        words = (machine.code_address(word, mappings[-1].end) for (word,) in struct.iter_unpack("<Q", raw[: len(raw) // 8 * 8]))
        callers = [
            mapping
            for word in words
            if (mapping := _code_at(mappings, word))
            and len(before := os.pread(memory.fileno(), machine.call_bytes, word - machine.call_bytes)) == machine.call_bytes
            and machine.follows_call(before)
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
