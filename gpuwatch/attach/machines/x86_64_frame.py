"""A signal-return frame of x86-64: bytes from which the kernel's rt_sigreturn restores a thread, vector registers included.

Every detour that an attach makes ends in such a frame. The thread then finds its own way back, so that an attacher that is
killed while the thread is stopped, at whatever instant, leaves it alive (a saved register set in the attacher dies with it).
Layouts: Linux, x86-64, struct ucontext and the xsave area's software-reserved bytes (arch/x86/include/uapi/asm).
"""

from __future__ import annotations

import struct

_FP_MAGIC1, _FP_MAGIC2 = 0x46505853, 0x46505845
_SW_RESERVED = 464
_UC_FP_XSTATE, _UC_SIGCONTEXT_SS, _UC_STRICT_RESTORE_SS = 1, 2, 4
#: An alternate-stack request that the kernel refuses and then ignores, so that the thread's own sigaltstack stays.
_REFUSED_ALTSTACK = 0x1234
_NOT_IN_SYSCALL = (1 << 64) - 1
_ERESTARTSYS, _ERESTARTNOINTR, _ERESTARTNOHAND, _ERESTART_RESTARTBLOCK = 512, 513, 514, 516
_NR_RESTART_SYSCALL = 219
UCONTEXT_BYTES = 304
_GREGS = "r8 r9 r10 r11 r12 r13 r14 r15 rdi rsi rbp rbx rdx rax rcx rsp rip eflags".split()


def resumed(registers: dict[str, int]) -> dict[str, int]:
    """The registers with which an interrupted system call starts again.

    The kernel does this by itself for a thread that it wakes from a signal stop, but not after rt_sigreturn.
    """
    result = dict(registers)
    in_syscall = registers["orig_rax"] != _NOT_IN_SYSCALL
    error = -struct.unpack("<q", struct.pack("<Q", registers["rax"]))[0]
    if in_syscall and error in (_ERESTARTSYS, _ERESTARTNOINTR, _ERESTARTNOHAND):
        result["rax"] = registers["orig_rax"]
        result["rip"] -= 2
    elif in_syscall and error == _ERESTART_RESTARTBLOCK:
        result["rax"] = _NR_RESTART_SYSCALL
        result["rip"] -= 2
    return result


def frame_bytes(vector_state: bytes) -> int:
    """Room that one frame takes, alignment included."""
    return UCONTEXT_BYTES + 64 + len(vector_state) + 4


def build(address: int, registers: dict[str, int], vector_state: bytes, signal_mask: int) -> bytes:
    """The frame as it must lie at `address` (16-byte aligned): rt_sigreturn with rsp == address restores all of it.

    `registers` by the names of x86_64.py; `vector_state` the standard xsave area.
    """
    state_address = (address + UCONTEXT_BYTES + 63) & ~63
    head = struct.pack("<QQQiIQ", _UC_FP_XSTATE | _UC_SIGCONTEXT_SS | _UC_STRICT_RESTORE_SS, 0, 0, _REFUSED_ALTSTACK, 0, 0)
    general = struct.pack(f"<{len(_GREGS)}Q", *[registers[name] for name in _GREGS])
    selectors = struct.pack("<HHHH", registers["cs"], 0, 0, registers["ss"])
    tail = struct.pack("<QQQQQ", 0, 0, 0, 0, state_address) + bytes(64) + struct.pack("<Q", signal_mask)
    ucontext = (head + general + selectors + tail).ljust(UCONTEXT_BYTES, b"\0")
    (features,) = struct.unpack_from("<Q", vector_state, _SW_RESERVED)
    size = len(vector_state)
    reserved = struct.pack("<IIQI", _FP_MAGIC1, size + 4, features, size).ljust(48, b"\0")
    state = vector_state[:_SW_RESERVED] + reserved + vector_state[_SW_RESERVED + 48 :] + struct.pack("<I", _FP_MAGIC2)
    return ucontext.ljust(state_address - address, b"\0") + state
