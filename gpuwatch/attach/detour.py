"""A detour of one stopped thread: one call of ours, and the way back, which the thread also finds without us."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gpuwatch.attach.entry import ElsewhereError, EntryPoints, InjectError
from gpuwatch.attach.machine import Registers, State
from gpuwatch.attach.maps import place, read_maps
from gpuwatch.attach.ptrace import SignalInfo, TargetExitedError, Tracee

_LEAST_SECONDS = 0.01
#: Between the last byte of a way back and what the thread has on its stack.
_APART_BYTES = 64
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


class FaultError(InjectError):
    """The thread faulted on the detour. `harmless` when nothing of the interpreter's had been called yet."""

    def __init__(self, sentence: str, *, harmless: bool) -> None:
        super().__init__(sentence)
        self.harmless = harmless


class Detour:
    """A stopped thread, what it was doing, and the way back to it."""

    def __init__(self, thread: Tracee, memory: int, entry: EntryPoints, timeout_seconds: float) -> None:
        self._thread, self._memory, self._entry, self._timeout = thread, memory, entry, timeout_seconds
        self._machine, self._phase = entry.machine, "being stopped"
        self._come_to_rest()
        self.began_ns = time.perf_counter_ns()
        before, enters = self._where_it_stands()
        if lost := self._machine.lost(thread):
            raise ElsewhereError(f"the main thread is using {lost}")
        vectors = self._machine.vectors(thread)
        self._before = before
        self._state = State(self._machine.resumed(before, enters), vectors, thread.signal_mask())
        self.room = self._machine.way_back_bytes(vectors)
        #: Where the thread was stopped: system call or 2**64-1, stack pointer, instruction pointer.
        self.place = self._machine.place(before, self._state.home)
        self._lowest = before[self._machine.stack] - self._machine.red_zone_bytes  # below it nothing belongs to anybody
        self._slot = 0
        if enters is not None:
            self._lay_way_back(self._lowest)
            self._leave_entry()
            self._lowest = self._slot

    def system_call(self, number: int, *arguments: int) -> int:
        """One system call of the thread's, on its own stack; its result. Should we die, it goes home from there by itself."""
        self._phase = f"making system call {number}"
        slot = self._lay_way_back(self._lowest)
        self._go(self._machine.to_system_call(self._before, slot, self._entry.code, number, arguments))
        self._to_syscall(number, slot)  # entry
        self._thread.resume_to_syscall()
        self._next_syscall_stop()  # exit
        return self._machine.result(self._machine.registers(self._thread))

    def call(self, function: int, first: int, data: bytes, stack_top: int) -> None:
        """`function(first, address of data)` on a stack of our own that ends at `stack_top`; data lies above it."""
        self._phase = "filing the call"
        slot = self._machine.slot(stack_top)
        way_back = self._machine.way_back(slot, self._entry.code, self._state)
        self._write(slot, way_back + data)
        self._slot = slot
        self._go(self._machine.to_function(self._before, slot, self._entry.code, function, (first, slot + len(way_back))))
        self._to_syscall(self._machine.rt_sigreturn, self._machine.stack_on_way_back(slot))

    def set_off(self, calls: Sequence[tuple[int, int | None]], data: bytes) -> int:
        """Let the thread go on a way of its own; nanoseconds since the stop. Nothing is waited for.

        It makes `calls`, each a function and its argument, if any (DATA: the address of `data`), and the last return is home.
        """
        top = self._lowest - self.room - _APART_BYTES
        at, lies, registers = self._machine.tour(self._state, top, self._entry.code, calls, data)
        self._write(at, lies)
        self._go(registers)
        return time.perf_counter_ns() - self.began_ns

    @contextmanager
    def brought_home(self) -> Iterator[None]:
        """Whatever goes wrong inside, the thread is put back to where it was stopped before the caller hears of it."""
        try:
            yield
        except TargetExitedError:
            raise
        except TimeoutError:
            # The interpreter's own lock around its pending calls is held at this very stop: waiting for it changed nothing.
            self._abandon()
            raise InjectError(f"the thread did not come back in {self._timeout:g} s while {self._phase}") from None
        except Exception:
            self._abandon()
            raise

    def _abandon(self) -> None:
        self._thread.set_signal_mask(self._state.signal_mask)  # a handler that we break off would have put it back itself
        self.go_home()

    def go_home(self) -> int:
        """Put everything back; nanoseconds since the stop."""
        if self._machine.hides_registers_at_syscalls and self._thread.at_syscall:
            if self._machine.entered(self._thread) is None:
                self._come_to_rest(resumed=False)
            else:
                self._leave_entry()
        # Vectors first: killed in between, the frame restores both.
        self._machine.set_vectors(self._thread, self._state.vectors)
        self._go(self._state.home)
        return time.perf_counter_ns() - self.began_ns

    def _come_to_rest(self, *, resumed: bool = True) -> None:
        """Stop the thread where it is; unless it runs (`resumed`), at the next instruction of its own."""
        self._thread.interrupt()
        if not resumed:
            self._thread.resume()
        while not (stop := self._thread.wait()).interrupted:
            self._thread.resume(stop.signal)

    def _where_it_stands(self) -> tuple[Registers, int | None]:
        """The registers of the thread that has been stopped, and which system call it has been let go to, if any."""
        while True:
            before = self._machine.registers(self._thread)
            if self._entry.stack and before[self._machine.stack] not in self._entry.stack:
                # Code that borrows the stack pointer, or a coroutine: what lies below it may be somebody's data.
                raise ElsewhereError("the main thread is not on its own stack")
            if not self._machine.restart_is_undecided(before, self._memory):
                return before, None
            if self._left_seconds() < 0.0:
                raise ElsewhereError("signals keep the main thread from its system call")
            self._thread.resume_to_syscall()
            stop = self._thread.wait()
            if stop.at_syscall:
                entered = self._machine.entered(self._thread)
                if entered is not None and entered[1] == before[self._machine.stack]:
                    return before, entered[0]
            if not stop.interrupted:
                self._thread.resume(0 if stop.at_syscall else stop.signal)  # its handler runs first
                self._come_to_rest()

    def _leave_entry(self) -> None:
        """From a system call's entry to the way back at the slot, without the call; the thread then stands still there."""
        code, stack = self._entry.code, self._machine.stack_on_way_back(self._slot)
        self._machine.skip_to(self._thread, code.way_back, stack)
        self._come_to_rest(resumed=False)

    def _lay_way_back(self, below: int) -> int:
        """Write a way back on the thread's own stack; its slot."""
        slot = self._machine.slot(below - self.room - _APART_BYTES)
        self._write(slot, self._machine.way_back(slot, self._entry.code, self._state))
        self._slot = slot
        return slot

    def _go(self, registers: Registers) -> None:
        self._machine.set_registers(self._thread, registers)

    def _write(self, address: int, data: bytes) -> None:
        if os.pwrite(self._memory, data, address) != len(data):
            raise InjectError("the target's memory could not be written")

    def _to_syscall(self, number: int, stack: int) -> None:
        """Run until the thread enters system call `number` with its stack pointer at `stack`; others on the way pass.

        A signal may come on the way, and its handler ends in an rt_sigreturn too: that one, further down, is not ours.
        """
        while True:
            if self._left_seconds() < 0.0:  # signals come faster than they can be passed on
                raise TimeoutError
            self._thread.resume_to_syscall()
            self._next_syscall_stop()
            if self._machine.entered(self._thread) == (number, stack):
                return

    def _left_seconds(self) -> float:
        return self._timeout - (time.perf_counter_ns() - self.began_ns) / 1e9

    def _next_syscall_stop(self) -> None:
        with _interrupted_after(self._thread, max(self._left_seconds(), _LEAST_SECONDS)) as expired:
            while True:
                stop = self._thread.wait()
                if stop.at_syscall:
                    return
                if stop.interrupted:
                    if expired:
                        raise TimeoutError
                    self._thread.resume_to_syscall()
                elif stop.signal in _FAULTS and (fault := self._thread.signal_info()).code > 0:
                    raise self._fault(stop.signal, fault)
                else:
                    self._thread.resume_to_syscall(stop.signal)  # its handler runs on our stack and comes back

    def _fault(self, number: int, fault: SignalInfo) -> FaultError:
        registers = self._machine.registers(self._thread)
        where = place(read_maps(self._thread.tid), registers[self._machine.instruction])
        return FaultError(
            f"the thread faulted while {self._phase} (signal {number}, code {fault.code}, at {where}, address "
            f"{fault.address:#x}, stack {registers[self._machine.stack]:#x}); it goes on as before",
            harmless=self._phase != "filing the call",
        )


@contextmanager
def _interrupted_after(thread: Tracee, seconds: float) -> Iterator[list[bool]]:
    """Interrupt the thread after `seconds` (waitpid blocks, and only a stop ends it); the list is not empty from then on."""
    expired: list[bool] = []

    def expire(_signal: int, _frame: object) -> None:
        expired.append(True)
        thread.interrupt()

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield expired
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
