"""A signal-return frame of aarch64: bytes from which the kernel's rt_sigreturn restores a thread, vector registers included.

What it is for: x86_64_frame.py. Layouts: Linux, arm64, struct rt_sigframe (a siginfo, then struct ucontext) and the tagged
records of sigcontext.h and ptrace.h (arch/arm64/include/uapi/asm). All numbers are little-endian.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_SIGINFO_BYTES = 128
#: An alternate-stack request that the kernel refuses and then ignores, so that the thread's own sigaltstack stays.
_REFUSED_ALTSTACK = 0x1234
_FPSIMD_MAGIC, _SVE_MAGIC, _EXTRA_MAGIC = 0x46508001, 0x53564501, 0x45585401
_END = bytes(16)
_EXTRA_BYTES = 32
_RECORDS_AT = _SIGINFO_BYTES + 464
#: Room for records in every frame, even where fewer are there: the kernel reads so far.
_RECORDS_BYTES = 4096
_SVE_HEADER = struct.Struct("<IIHHHH")  # struct user_sve_header: size, max_size, vl, max_vl, flags, reserved
_SVE_REGISTERS = 1  # its flag: what follows are Z, P and FFR, not the 128-bit registers alone
FPSIMD_BYTES = 528  # struct user_fpsimd_state: 32 registers, fpsr, fpcr, two words that are not used


class Vectors(NamedTuple):
    """The vector unit as ptrace gives it: NT_PRFPREG, and NT_ARM_SVE where the thread has more in it than that."""

    fpsimd: bytes
    sve: bytes

    @classmethod
    def unpack(cls, raw: bytes) -> Vectors:
        """Out of one byte string, which `fpsimd + sve` is."""
        return cls(raw[:FPSIMD_BYTES], raw[FPSIMD_BYTES:])


def uses_sve(regset: bytes) -> bool:
    """Whether NT_ARM_SVE holds scalable registers: a thread that has not used them since its last system call has none."""
    return len(regset) >= _SVE_HEADER.size and bool(_SVE_HEADER.unpack_from(regset)[4] & _SVE_REGISTERS)


def frame_bytes(vector_state: bytes) -> int:
    """Room that one frame takes, alignment included."""
    return _RECORDS_AT + _RECORDS_BYTES + _EXTRA_BYTES + 2 * len(_END) + len(vector_state) + 16


def build(address: int, registers: dict[str, int], vector_state: bytes, signal_mask: int) -> bytes:
    """The frame as it must lie at `address` (16-byte aligned): rt_sigreturn with sp == address restores all of it.

    `registers` by the names of aarch64.py; `vector_state`: NT_PRFPREG, then NT_ARM_SVE or nothing.
    """
    head = struct.pack("<QQQiIQ", 0, 0, 0, _REFUSED_ALTSTACK, 0, 0) + struct.pack("<Q", signal_mask)
    general = [registers[f"x{number}"] for number in range(31)] + [registers[name] for name in ("sp", "pc", "pstate")]
    context = struct.pack("<35Q", 0, *general)  # the first: the address of a fault
    vectors = Vectors.unpack(vector_state)
    fpsr_fpcr = vectors.fpsimd[512:520]
    records = struct.pack("<II", _FPSIMD_MAGIC, FPSIMD_BYTES) + fpsr_fpcr + vectors.fpsimd[:512]
    if vectors.sve:
        # It may be longer than the room for records. What is longer than that lies behind a pointer, which the kernel wants to
        # point right behind itself.
        sve = _sve_record(vectors.sve)
        extra_at = address + _RECORDS_AT + len(records) + _EXTRA_BYTES + len(_END)
        records += struct.pack("<IIQI", _EXTRA_MAGIC, _EXTRA_BYTES, extra_at, len(sve) + len(_END)).ljust(_EXTRA_BYTES, b"\0")
        records += _END + sve
    body = bytes(_SIGINFO_BYTES) + (head.ljust(176, b"\0") + context).ljust(464, b"\0") + records + _END
    return body.ljust(_RECORDS_AT + _RECORDS_BYTES, b"\0")


def _sve_record(regset: bytes) -> bytes:
    """NT_ARM_SVE as a record of a frame: another head, and without fpsr and fpcr, which stand in the other record."""
    vector_bytes = _SVE_HEADER.unpack_from(regset)[2]
    register_bytes = 32 * vector_bytes + 17 * (vector_bytes // 8)  # Z0-Z31, P0-P15, FFR
    payload = regset[_SVE_HEADER.size : _SVE_HEADER.size + register_bytes]
    size = (16 + register_bytes + 15) & ~15
    return (struct.pack("<IIHHHH", _SVE_MAGIC, size, vector_bytes, 0, 0, 0) + payload).ljust(size, b"\0")
