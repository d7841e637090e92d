"""A detour of one stopped thread: one call of ours, and the way back, which the thread also finds without us."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gpuwatch.attach import sigframe
from gpuwatch.attach.entry import EntryPoints, InjectError
from gpuwatch.attach.ptrace import Tracee

_NOT_IN_SYSCALL = (1 << 64) - 1
_NR_RT_SIGRETURN = 15
_RED_ZONE_BYTES = 128
_DIRECTION_FLAG = 0x400


class Detour:
    """A stopped thread, what it was doing, and the way back to it."""

    def __init__(self, thread: Tracee, memory: int, entry: EntryPoints, timeout_seconds: float) -> None:
        self._thread, self._memory, self._entry, self._timeout = thread, memory, entry, timeout_seconds
        thread.interrupt()
        while not (stop := thread.wait()).interrupted:
            thread.resume(stop.signal)
        self.began_ns = time.perf_counter_ns()
        self._before = thread.registers()
        self._vectors = thread.vector_state()
        self._mask = thread.signal_mask()
        self._home = sigframe.resumed(self._before)
        self.room = sigframe.frame_bytes(self._vectors)

    def system_call(self, number: int, *arguments: int) -> int:
        """One system call of the thread's, on its own stack; its result. Should we die, it goes home from there by itself."""
        slot = _slot(self._before["rsp"] - _RED_ZONE_BYTES - self.room - 64)
        self._write(slot, self._frame(slot))
        given = dict(zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False))
        self._go(rip=self._entry.syscall_ret, rsp=slot, rax=number, **given)
        self._to_syscall(number)  # entry
        self._thread.resume_to_syscall()
        self._next_syscall_stop()  # exit
        return self._thread.registers()["rax"]

    def call(self, function: int, first: int, data: bytes, stack_top: int) -> None:
        """`function(first, address of data)` on a stack of our own that ends at `stack_top`; data lies above it."""
        slot = _slot(stack_top)
        frame = self._frame(slot)
        self._write(slot, frame + data)
        flags = self._before["eflags"] & ~_DIRECTION_FLAG
        self._go(rip=function, rsp=slot, rdi=first, rsi=slot + len(frame), rax=0, eflags=flags)
        self._to_syscall(_NR_RT_SIGRETURN)

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

    def _to_syscall(self, number: int) -> None:
        """Run until the thread enters system call `number`; others that it makes on the way pass."""
        while True:
            self._thread.resume_to_syscall()
            self._next_syscall_stop()
            registers = self._thread.registers()
            # At an entry the kernel has already set rax to -ENOSYS; an exit has the result there.
            if registers["orig_rax"] == number and registers["rax"] == (-38 & (1 << 64) - 1):
                return

    def _next_syscall_stop(self) -> None:
        with _interrupted_after(self._thread, self._timeout) as expired:
            while True:
                stop = self._thread.wait()
                if stop.at_syscall:
                    return
                if stop.interrupted:
                    if expired:
                        raise TimeoutError
                    self._thread.resume_to_syscall()
                elif stop.signal in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL):
                    where = self._thread.registers()["rip"]
                    self.go_home()
                    raise InjectError(f"the call faulted (signal {stop.signal} at {where:#x}); the target goes on")
                else:
                    self._thread.resume_to_syscall(stop.signal)  # its handler runs on our stack and comes back


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
