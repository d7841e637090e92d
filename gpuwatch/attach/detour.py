"""A detour of one stopped thread: one call of ours, and the way back, which the thread also finds without us."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gpuwatch.attach import sigframe
from gpuwatch.attach.entry import EntryPoints, InjectError
from gpuwatch.attach.maps import place, read_maps
from gpuwatch.attach.ptrace import SignalInfo, TargetExitedError, Tracee

_NOT_IN_SYSCALL = (1 << 64) - 1
_NR_RT_SIGRETURN = 15
_RED_ZONE_BYTES = 128
_DIRECTION_FLAG = 0x400
_LEAST_SECONDS = 0.01
#: Stands for the address of the data in `Detour.set_off`.
DATA = -1
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


class ElsewhereError(InjectError):
    """The thread was stopped where we touch nothing; a moment later it is somewhere else."""


class FaultError(InjectError):
    """The thread faulted on the detour. `harmless` when nothing of the interpreter's had been called yet."""

    def __init__(self, sentence: str, *, harmless: bool) -> None:
        super().__init__(sentence)
        self.harmless = harmless


class Detour:
    """A stopped thread, what it was doing, and the way back to it."""

    def __init__(self, thread: Tracee, memory: int, entry: EntryPoints, timeout_seconds: float) -> None:
        self._thread, self._memory, self._entry, self._timeout = thread, memory, entry, timeout_seconds
        self._phase = "being stopped"
        thread.interrupt()
        while not (stop := thread.wait()).interrupted:
            thread.resume(stop.signal)
        self.began_ns = time.perf_counter_ns()
        self._before = thread.registers()
        if entry.stack and self._before["rsp"] not in entry.stack:
            # Code that borrows the stack pointer, or a coroutine: what lies below it may be somebody's data.
            raise ElsewhereError("the main thread is not on its own stack")
        self._vectors = thread.vector_state()
        self._mask = thread.signal_mask()
        self._home = sigframe.resumed(self._before)
        self.room = sigframe.frame_bytes(self._vectors)

    def system_call(self, number: int, *arguments: int) -> int:
        """One system call of the thread's, on its own stack; its result. Should we die, it goes home from there by itself."""
        self._phase = f"making system call {number}"
        slot = _slot(self._before["rsp"] - _RED_ZONE_BYTES - self.room - 64)
        self._write(slot, self._frame(slot))
        given = dict(zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False))
        self._go(rip=self._entry.syscall_ret, rsp=slot, rax=number, **given)
        self._to_syscall(number, slot)  # entry
        self._thread.resume_to_syscall()
        self._next_syscall_stop()  # exit
        return self._thread.registers()["rax"]

    def call(self, function: int, first: int, data: bytes, stack_top: int) -> None:
        """`function(first, address of data)` on a stack of our own that ends at `stack_top`; data lies above it."""
        self._phase = "filing the call"
        slot = _slot(stack_top)
        frame = self._frame(slot)
        self._write(slot, frame + data)
        flags = self._before["eflags"] & ~_DIRECTION_FLAG
        self._go(rip=function, rsp=slot, rdi=first, rsi=slot + len(frame), rax=0, eflags=flags)
        self._to_syscall(_NR_RT_SIGRETURN, slot + 8)

    def set_off(self, words: Sequence[int], data: bytes) -> int:
        """Let the thread go on a way of its own; nanoseconds since the stop. Nothing is waited for.

        It begins at the first of `words`; the others lie on its stack, as return addresses and what the code there pops, and
        the last return is home. DATA among them becomes the address of `data`. An even number of words behind the first
        keeps every function's stack aligned.
        """
        below = (len(words) - 1) * 8
        slot = _slot(self._before["rsp"] - _RED_ZONE_BYTES - self.room - 64 - len(data))
        frame = self._frame(slot)
        address = slot + len(frame)
        path = [address if word == DATA else word for word in words]
        self._write(slot - below, struct.pack(f"<{len(path) - 1}Q", *path[1:]) + frame + data)
        flags = self._before["eflags"] & ~_DIRECTION_FLAG
        self._go(rip=path[0], rsp=slot - below, rax=0, eflags=flags)
        return time.perf_counter_ns() - self.began_ns

    @property
    def place(self) -> tuple[int, int, int]:
        """Where the thread was stopped: system call or 2**64-1, stack pointer, instruction pointer."""
        return self._before["orig_rax"], self._before["rsp"], self._before["rip"]

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
        self._thread.set_signal_mask(self._mask)  # a handler that we break off would have put it back itself
        self.go_home()

    def go_home(self) -> int:
        """Put everything back; nanoseconds since the stop."""
        # At a system call's entry, orig_rax -1 skips the call and leaves rax alone: rt_sigreturn does not run, so what it would
        # forget, how to go on with an interrupted sleep, survives. Vectors first: killed in between, the frame restores both.
        self._thread.set_vector_state(self._vectors)
        self._thread.set_registers(self._home | {"orig_rax": _NOT_IN_SYSCALL})
        return time.perf_counter_ns() - self.began_ns

    def _go(self, **registers: int) -> None:
        self._thread.set_registers(self._before | registers | {"orig_rax": _NOT_IN_SYSCALL})

    def _frame(self, slot: int) -> bytes:
        """What lies at the return address `slot`: the way into rt_sigreturn, and the frame that it reads."""
        return struct.pack("<Q", self._entry.restore_rt) + sigframe.build(slot + 8, self._home, self._vectors, self._mask)

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
            registers = self._thread.registers()
            # At an entry the kernel has already set rax to -ENOSYS; an exit has the result there.
            at_entry = registers["rax"] == (-38 & (1 << 64) - 1)
            if registers["orig_rax"] == number and registers["rsp"] == stack and at_entry:
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
        registers = self._thread.registers()
        where = place(read_maps(self._thread.tid), registers["rip"])
        return FaultError(
            f"the thread faulted while {self._phase} (signal {number}, code {fault.code}, at {where}, address "
            f"{fault.address:#x}, stack {registers['rsp']:#x}); it goes on as before",
            harmless=self._phase != "filing the call",
        )


def _slot(address: int) -> int:
    """Where a return address lies so that the frame behind it is 16-byte aligned, as a function's entry wants it."""
    return (address & ~15) - 8


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
