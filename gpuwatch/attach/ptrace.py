"""ptrace(2) for one stopped thread: register sets, signals, stops. Nothing here knows why it is called, or on which machine."""

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
#: The register sets that every machine has: general, floating-point and vector.
NT_PRSTATUS, NT_PRFPREG = 1, 2
_EVENT_STOP = 128
_WALL = 0x40000000
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
        self.at_syscall = False  # the last stop was for a system call
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
        self.at_syscall = number == (signal.SIGTRAP | 0x80)
        return Stop(number & 0x7F, status >> 16 == _EVENT_STOP, self.at_syscall)

    def resume(self, deliver: int = 0) -> None:
        """Let it run, with a signal that it stopped for."""
        _ptrace(_CONT, self.tid, 0, deliver)

    def resume_to_syscall(self, deliver: int = 0) -> None:
        """Let it run until it enters or leaves a system call."""
        _ptrace(_SYSCALL, self.tid, 0, deliver)

    def detach(self) -> None:
        """Let it go on by itself."""
        _ptrace(_DETACH, self.tid)

    def register_set(self, kind: int, most_bytes: int) -> bytes:
        """One register set as the kernel lays it out. Raises OSError (EINVAL) where the processor has none of that kind."""
        buffer = ctypes.create_string_buffer(most_bytes)
        vector = _IoVec(ctypes.addressof(buffer), most_bytes)
        _ptrace(_GETREGSET, self.tid, kind, ctypes.addressof(vector))
        return buffer.raw[: vector.length]

    def set_register_set(self, kind: int, raw: bytes) -> None:
        """Set what `register_set` gives."""
        buffer = ctypes.create_string_buffer(raw, len(raw))
        vector = _IoVec(ctypes.addressof(buffer), len(raw))
        _ptrace(_SETREGSET, self.tid, kind, ctypes.addressof(vector))

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
