"""aarch64: registers, calls, and where the way back lies. Experimental: proven under emulation only (tests/attach/arm64).

What is not as on x86-64:

- a call leaves its return address in a register (x30), so the way back is the vdso's rt_sigreturn with the frame at the stack
  pointer; nothing below the stack pointer belongs to anybody;
- the kernel itself rewinds an interrupted system call before it reports the stop, but decides only afterwards whether the
  thread goes on with restart_syscall instead. For the calls that this can concern, the thread is let go up to the system call
  that it then makes, which tells;
- while a thread is stopped at a system call's entry or exit, its x7 cannot be read or set: it is led out of such a stop before
  its registers are put back.

Pointer authentication needs nothing: what we have a function return to is signed and checked within that function. Branch
target identification: PSTATE.BTYPE is saved, and cleared for a call of ours, whose target is the start of a function, or no
landing pad at all.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from gpuwatch.attach.elf import EM_AARCH64
from gpuwatch.attach.machine import DATA, Code, Machine, Registers, State
from gpuwatch.attach.machines import aarch64_frame
from gpuwatch.attach.machines.aarch64_frame import FPSIMD_BYTES, Vectors, uses_sve
from gpuwatch.attach.ptrace import NT_PRFPREG, NT_PRSTATUS, Tracee

_NT_ARM_SYSTEM_CALL, _NT_ARM_SVE, _NT_ARM_SSVE, _NT_ARM_ZA = 0x404, 0x405, 0x40B, 0x40C
_NAMES = (*(f"x{number}" for number in range(31)), "sp", "pc", "pstate")
_WORDS = struct.Struct(f"<{len(_NAMES)}Q")
_MASK = (1 << 64) - 1
_SVE_MAX_BYTES = 16384
_MATRIX_HEADER_BYTES = 16
_BRANCH_TYPE = 0xC00
_NO_SYSTEM_CALL = struct.pack("<i", -1)
_SVC_MASK, _SVC = 0xFFE0001F, 0xD4000001
#: ppoll futex nanosleep clock_nanosleep restart_syscall: those that restart_syscall may go on with.
_RESTARTED_OTHERWISE = frozenset((73, 98, 101, 115, 128))


class Aarch64(Machine):
    """See Machine."""

    name = "aarch64"
    elf_machine = EM_AARCH64
    system_call_code = b"\x01\x00\x00\xd4\xc0\x03\x5f\xd6"  # svc #0; ret
    way_back_code = b"\x68\x11\x80\xd2\x01\x00\x00\xd4"  # mov x8, #139; svc #0
    tour_code = ()
    vdso_has_way_back = True
    mmap, munmap, rt_sigreturn, restart_syscall, futex = 222, 215, 139, 128, 98
    #: epoll_pwait read pselect6 ppoll waitid nanosleep clock_nanosleep restart_syscall accept recvfrom recvmsg accept4 wait4
    sleeps = frozenset((22, 63, 72, 73, 95, 101, 115, 128, 202, 207, 212, 242, 260))
    red_zone_bytes = 0
    stack, instruction = "sp", "pc"
    hides_registers_at_syscalls = True
    call_bytes = 4

    def registers(self, thread: Tracee) -> Registers:
        return dict(zip(_NAMES, _WORDS.unpack(thread.register_set(NT_PRSTATUS, _WORDS.size)), strict=True))

    def set_registers(self, thread: Tracee, registers: Registers) -> None:
        # The kernel starts an interrupted system call again only where it finds the instruction pointer as it has left it.
        thread.set_register_set(NT_PRSTATUS, _WORDS.pack(*[registers[name] & _MASK for name in _NAMES]))

    def vectors(self, thread: Tracee) -> bytes:
        """NT_PRFPREG, then NT_ARM_SVE where the thread has something in its scalable registers."""
        scalable = _optional(thread, _NT_ARM_SVE)
        return thread.register_set(NT_PRFPREG, FPSIMD_BYTES) + (scalable if uses_sve(scalable) else b"")

    def lost(self, thread: Tracee) -> str:
        in_use = uses_sve(_optional(thread, _NT_ARM_SSVE)) or len(_optional(thread, _NT_ARM_ZA)) > _MATRIX_HEADER_BYTES
        return "the processor's matrix unit (SME)" if in_use else ""

    def set_vectors(self, thread: Tracee, state: bytes) -> None:
        vectors = Vectors.unpack(state)
        if vectors.sve:
            thread.set_register_set(_NT_ARM_SVE, vectors.sve)
        else:
            thread.set_register_set(NT_PRFPREG, vectors.fpsimd)

    def restart_is_undecided(self, before: Registers, memory: int) -> bool:
        return before["x8"] in _RESTARTED_OTHERWISE and _at_svc(before, memory)

    def resumed(self, before: Registers, enters: int | None) -> Registers:
        return before if enters is None else before | {"x8": enters}

    def place(self, before: Registers, home: Registers) -> tuple[int, int, int]:
        # A thread that has gone to sleep shows the instruction behind its system call; rewound, it stands before it.
        return home["x8"], before["sp"], before["pc"] + 4

    def entered(self, thread: Tracee) -> tuple[int, int] | None:
        registers = self.registers(thread)
        if registers["x7"]:  # 0: entry, 1: exit
            return None
        (number,) = struct.unpack("<i", thread.register_set(_NT_ARM_SYSTEM_CALL, 4))
        return number, registers["sp"]

    def skip_to(self, thread: Tracee, instruction: int, stack: int) -> None:
        # Two calls, so killed between them: the system call is then made, but with arguments that none accepts, and what comes
        # after it is the same. (rt_sigreturn has no arguments but the stack pointer.)
        refused = {f"x{number}": _MASK for number in range(6)}
        self.set_registers(thread, self.registers(thread) | refused | {"pc": instruction, "sp": stack})
        thread.set_register_set(_NT_ARM_SYSTEM_CALL, _NO_SYSTEM_CALL)

    def result(self, registers: Registers) -> int:
        return registers["x0"]

    def slot(self, address: int) -> int:
        return address & ~15

    def way_back(self, slot: int, code: Code, state: State) -> bytes:  # noqa: ARG002
        return aarch64_frame.build(slot, *state)

    def way_back_bytes(self, vectors: bytes) -> int:
        return aarch64_frame.frame_bytes(vectors)

    def stack_on_way_back(self, slot: int) -> int:
        return slot

    def to_system_call(self, before: Registers, slot: int, code: Code, number: int, arguments: Sequence[int]) -> Registers:
        return self.to_function(before, slot, code, code.system_call, arguments) | {"x8": number}

    def to_function(self, before: Registers, slot: int, code: Code, function: int, arguments: Sequence[int]) -> Registers:
        given = {f"x{number}": argument for number, argument in enumerate(arguments)}
        pstate = before["pstate"] & ~_BRANCH_TYPE
        return before | {"pc": function, "sp": slot, "x30": code.way_back, "pstate": pstate} | given

    def tour(
        self, state: State, top: int, code: Code, calls: Sequence[tuple[int, int | None]], data: bytes
    ) -> tuple[int, bytes, Registers]:
        """Signal-return frames, one above the other: each call returns into one that makes the next, the last one home."""
        at = self.slot(top - len(data))
        lies = self.way_back(at, code, state)
        address = at + len(lies)
        lies += data
        registers = state.home
        for number, (function, argument) in reversed(list(enumerate(calls))):
            given = () if argument is None else (address if argument == DATA else argument,)
            registers = self.to_function(state.home, at, code, function, given)
            if number:
                between = State(registers, state.vectors[:FPSIMD_BYTES], state.signal_mask)
                above, at = at, self.slot(at - self.way_back_bytes(between.vectors))
                lies = self.way_back(at, code, between).ljust(above - at, b"\0") + lies
        return at, lies, registers

    def code_address(self, word: int, highest: int) -> int:
        """Without the signature of pointer authentication, which takes the bits above the address space."""
        return word & (1 << highest.bit_length()) - 1

    def follows_call(self, before: bytes) -> bool:
        """bl, or blr and its authenticating forms."""
        (word,) = struct.unpack("<I", before)
        return bool(word >> 26 == 0b100101 or word & 0xFEFFF000 == 0xD63F0000)

    def has_shadow_stack(self, pid: int) -> bool:
        with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as lines:
            return any(line.startswith("VmFlags:") and " ss" in line for line in lines)


def _optional(thread: Tracee, kind: int) -> bytes:
    try:
        return thread.register_set(kind, _SVE_MAX_BYTES)
    except OSError:  # a processor, or a kernel, without it
        return b""


def _at_svc(before: Registers, memory: int) -> bool:
    try:
        raw = os.pread(memory, 4, before["pc"])
    except OSError:
        return False
    return len(raw) == 4 and int.from_bytes(raw, "little") & _SVC_MASK == _SVC
