"""x86-64: registers, calls, and where the way back lies."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from gpuwatch.attach.elf import EM_X86_64
from gpuwatch.attach.machine import DATA, Code, Machine, Registers, State
from gpuwatch.attach.machines import x86_64_frame
from gpuwatch.attach.ptrace import NT_PRSTATUS, Tracee

_NT_X86_XSTATE = 0x202
_XSTATE_MAX_BYTES = 16384
_NAMES = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base ds es fs gs"
).split()
_WORDS = struct.Struct(f"<{len(_NAMES)}Q")
_MASK = (1 << 64) - 1
_NOT_IN_SYSCALL = (1 << 64) - 1
_ENTERED = -38 & _MASK  # at an entry the kernel has already set rax to -ENOSYS; an exit has the result there
_DIRECTION_FLAG = 0x400


class X86_64(Machine):  # noqa: N801  # as the architecture is written
    """See Machine."""

    name = "x86-64"
    elf_machine = EM_X86_64
    system_call_code = b"\x0f\x05\xc3"
    way_back_code = b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05"  # mov rax, 15; syscall: every libc returns to it after a handler
    tour_code = (b"\x5f\xc3",)  # pop rdi; ret
    mmap, munmap, rt_sigreturn, restart_syscall, futex = 9, 11, 15, 219, 202
    #: read poll select recvfrom recvmsg accept nanosleep wait4 restart_syscall clock_nanosleep epoll_wait waitid pselect6 ppoll
    #: epoll_pwait accept4
    sleeps = frozenset((0, 7, 23, 35, 43, 45, 47, 61, 219, 230, 232, 247, 270, 271, 281, 288))
    red_zone_bytes = 128
    stack, instruction = "rsp", "rip"
    call_bytes = 7

    def registers(self, thread: Tracee) -> Registers:
        """`orig_rax` is the system call it is in, or 2**64-1."""
        return dict(zip(_NAMES, _WORDS.unpack(thread.register_set(NT_PRSTATUS, _WORDS.size)), strict=True))

    def set_registers(self, thread: Tracee, registers: Registers) -> None:
        # At a system call's entry, orig_rax -1 skips the call and leaves rax alone: rt_sigreturn does not run, so what it would
        # forget, how to go on with an interrupted sleep, survives.
        registers = registers | {"orig_rax": _NOT_IN_SYSCALL}
        thread.set_register_set(NT_PRSTATUS, _WORDS.pack(*[registers[name] & _MASK for name in _NAMES]))

    def vectors(self, thread: Tracee) -> bytes:
        """The xsave area in the kernel's standard (not compacted) layout: x87, SSE, AVX, AVX-512 ..."""
        return thread.register_set(_NT_X86_XSTATE, _XSTATE_MAX_BYTES)

    def set_vectors(self, thread: Tracee, state: bytes) -> None:
        thread.set_register_set(_NT_X86_XSTATE, state)

    def resumed(self, before: Registers, enters: int | None) -> Registers:  # noqa: ARG002
        return x86_64_frame.resumed(before)

    def place(self, before: Registers, home: Registers) -> tuple[int, int, int]:  # noqa: ARG002
        return before["orig_rax"], before["rsp"], before["rip"]

    def entered(self, thread: Tracee) -> tuple[int, int] | None:
        registers = self.registers(thread)
        return (registers["orig_rax"], registers["rsp"]) if registers["rax"] == _ENTERED else None

    def result(self, registers: Registers) -> int:
        return registers["rax"]

    def slot(self, address: int) -> int:
        """Where a return address lies so that the frame behind it is 16-byte aligned."""
        return (address & ~15) - 8

    def way_back(self, slot: int, code: Code, state: State) -> bytes:
        """The return address, which leads into rt_sigreturn, and the frame that it reads."""
        return struct.pack("<Q", code.way_back) + x86_64_frame.build(slot + 8, *state)

    def way_back_bytes(self, vectors: bytes) -> int:
        return x86_64_frame.frame_bytes(vectors)

    def stack_on_way_back(self, slot: int) -> int:
        return slot + 8

    def to_system_call(self, before: Registers, slot: int, code: Code, number: int, arguments: Sequence[int]) -> Registers:
        given = dict(zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False))
        return before | {"rip": code.system_call, "rsp": slot, "rax": number} | given

    def to_function(self, before: Registers, slot: int, code: Code, function: int, arguments: Sequence[int]) -> Registers:  # noqa: ARG002
        flags = before["eflags"] & ~_DIRECTION_FLAG
        given = dict(zip(("rdi", "rsi"), arguments, strict=False))
        return before | {"rip": function, "rsp": slot, "rax": 0, "eflags": flags} | given

    def tour(
        self, state: State, top: int, code: Code, calls: Sequence[tuple[int, int | None]], data: bytes
    ) -> tuple[int, bytes, Registers]:
        """Return addresses, one above the other: `pop rdi; ret` before a call that takes something, its `ret` alone where
        the stack would not be aligned."""
        (pop_rdi_ret,) = code.tour
        nothing = pop_rdi_ret + 1
        path: list[int] = []
        for function, argument in calls:
            path += [] if argument is None else [pop_rdi_ret, argument]
            path += [nothing] * (len(path) % 2) + [function]
        slot = self.slot(top - len(data))
        way_back = self.way_back(slot, code, state)
        words = [slot + len(way_back) if word == DATA else word for word in path]
        at = slot - (len(words) - 1) * 8
        return (
            at,
            struct.pack(f"<{len(words) - 1}Q", *words[1:]) + way_back + data,
            self.to_function(state.home, at, code, words[0], ()),
        )

    def code_address(self, word: int, highest: int) -> int:  # noqa: ARG002
        return word

    def follows_call(self, before: bytes) -> bool:
        """e8 rel32, or ff /2 in its short and long forms."""
        return before[2] == 0xE8 or any(before[-n] == 0xFF and before[-n + 1] >> 3 & 7 == 2 for n in (2, 3, 4, 6, 7))

    def has_shadow_stack(self, pid: int) -> bool:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:
            return any(line.startswith("x86_Thread_features:") and "shstk" in line for line in lines)
