"""ptrace(2) for one stopped thread: registers, vector state, stops. Nothing here knows why it is called.

Registers are x86-64's.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

_CONT, _SINGLESTEP, _DETACH, _SYSCALL = 7, 9, 17, 24
_GETSIGINFO, _GETREGSET, _SETREGSET, _SEIZE, _INTERRUPT, _GETSIGMASK, _SETSIGMASK = (
    0x4202,
    0x4204,
    0x4205,
    0x4206,
    0x4207,
    0x420A,
    0x420B,
)
_O_TRACESYSGOOD = 1
_NT_PRSTATUS, _NT_X86_XSTATE = 1, 0x202
_EVENT_STOP = 128
_WALL = 0x40000000
_XSTATE_MAX_BYTES = 16384

REGISTERS = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base ds es fs gs"
).split()
_WORDS = struct.Struct(f"<{len(REGISTERS)}Q")
_MASK = (1 << 64) - 1
_SIGNAL_INFO = struct.Struct("<i4xQ")  # siginfo_t from si_code on; si_addr of a fault


class TargetExitedError(Exception):
    """The traced thread ended while we held it."""


class Stop(NamedTuple):
    """Why the thread stopped: a signal on its way to it, our own interrupt (`interrupted`), or a system call (`at_syscall`)."""

    signal: int
    interrupted: bool
    at_syscall: bool


class SignalInfo(NamedTuple):
    """Where a signal comes from: `code` > 0 is the kernel's own word (a fault, at `address`), <= 0 a process's."""

    code: int
    address: int


class _IoVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def _ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, tid, address, data) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Tracee:
    """One thread under PTRACE_SEIZE. The caller's thread must make every call: the kernel ties a tracee to one thread."""

    def __init__(self, tid: int) -> None:
        """Seize `tid` without stopping it. Raises OSError (EPERM, ESRCH) as the kernel answers."""
        self.tid = tid
        _ptrace(_SEIZE, tid, 0, _O_TRACESYSGOOD)

    def interrupt(self) -> None:
        """Ask for a stop; `wait` reports it."""
        _ptrace(_INTERRUPT, self.tid)

    def wait(self) -> Stop:
        """Block until the next stop. (Polling with WNOHANG shares the target's core: it stretched stops from 0.3 to 130 ms.)"""
        _, status = os.waitpid(self.tid, _WALL)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            raise TargetExitedError(f"thread {self.tid} ended")
        number = os.WSTOPSIG(status)
        at_syscall = number == (signal.SIGTRAP | 0x80)
        return Stop(number & 0x7F, status >> 16 == _EVENT_STOP, at_syscall)

    def resume(self, deliver: int = 0) -> None:
        """Let it run, with a signal that it stopped for."""
        _ptrace(_CONT, self.tid, 0, deliver)

    def resume_to_syscall(self, deliver: int = 0) -> None:
        """Let it run until it enters or leaves a system call."""
        _ptrace(_SYSCALL, self.tid, 0, deliver)

    def detach(self) -> None:
        """Let it go on by itself."""
        _ptrace(_DETACH, self.tid)

    def registers(self) -> dict[str, int]:
        """General registers by name; `orig_rax` is the system call it is in, or 2**64-1."""
        return dict(zip(REGISTERS, _WORDS.unpack(self._get(_NT_PRSTATUS, _WORDS.size)), strict=True))

    def set_registers(self, registers: dict[str, int]) -> None:
        """Set all general registers."""
        self._set(_NT_PRSTATUS, _WORDS.pack(*[registers[name] & _MASK for name in REGISTERS]))

    def vector_state(self) -> bytes:
        """The xsave area in the kernel's standard (not compacted) layout: x87, SSE, AVX, AVX-512 ..."""
        return self._get(_NT_X86_XSTATE, _XSTATE_MAX_BYTES)

    def set_vector_state(self, state: bytes) -> None:
        """Put back what `vector_state` gave."""
        self._set(_NT_X86_XSTATE, state)

    def signal_info(self) -> SignalInfo:
        """About the signal that it has stopped for."""
        raw = ctypes.create_string_buffer(128)
        _ptrace(_GETSIGINFO, self.tid, 0, ctypes.addressof(raw))
        return SignalInfo(*_SIGNAL_INFO.unpack_from(raw, 8))

    def signal_mask(self) -> int:
        """The blocked signals, as the kernel's 64-bit set."""
        mask = ctypes.c_uint64()
        _ptrace(_GETSIGMASK, self.tid, 8, ctypes.addressof(mask))
        return mask.value

    def set_signal_mask(self, mask: int) -> None:
        """Set what `signal_mask` gives."""
        words = ctypes.c_uint64(mask)
        _ptrace(_SETSIGMASK, self.tid, 8, ctypes.addressof(words))

    def _get(self, kind: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        vector = _IoVec(ctypes.addressof(buffer), size)
        _ptrace(_GETREGSET, self.tid, kind, ctypes.addressof(vector))
        return buffer.raw[: vector.length]

    def _set(self, kind: int, raw: bytes) -> None:
        buffer = ctypes.create_string_buffer(raw, len(raw))
        vector = _IoVec(ctypes.addressof(buffer), len(raw))
        _ptrace(_SETREGSET, self.tid, kind, ctypes.addressof(vector))
