"""What an injection asks of the processor that it happens on; machines/ answers, one file for each that we know.

The recipe itself (injector.py, detour.py, visit.py) knows no register by name, no instruction and no number of a system call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from gpuwatch.attach.ptrace import Tracee

Registers = dict[str, int]
#: Stands for the address of the data among the arguments of `Machine.tour`.
DATA = -1


class Code(NamedTuple):
    """Addresses of instruction sequences in the target, found before it is stopped."""

    system_call: int  # makes a system call and returns
    way_back: int  # makes rt_sigreturn
    tour: tuple[int, ...] = ()  # `Machine.tour_code`'s


class State(NamedTuple):
    """A stopped thread: all that its way back restores. With the registers `home` it goes on as if nothing had been."""

    home: Registers
    vectors: bytes
    signal_mask: int


class Machine(ABC):
    """One architecture of Linux: its registers, its calls, and the frame from which the kernel's rt_sigreturn restores both."""

    name: str
    elf_machine: int
    #: Instructions, as bytes: a system call and the return behind it; what libc or the vdso returns to after a signal handler.
    system_call_code: bytes
    way_back_code: bytes
    #: More of them, which `tour` needs.
    tour_code: tuple[bytes, ...]
    #: The way back may be found in the vdso alone.
    vdso_has_way_back = False
    mmap: int
    munmap: int
    rt_sigreturn: int
    restart_syscall: int
    futex: int
    #: System calls other than futex in which libc and the interpreter sleep for somebody else's doing.
    sleeps: frozenset[int]
    #: What a function may use below the stack pointer without moving it.
    red_zone_bytes: int
    #: Names of the stack pointer and of the instruction pointer.
    stack: str
    instruction: str
    #: Whether some registers cannot be read or set while the thread is stopped at a system call.
    hides_registers_at_syscalls = False
    #: How many bytes before a return address `follows_call` looks at.
    call_bytes: int

    @abstractmethod
    def registers(self, thread: Tracee) -> Registers:
        """General registers by name."""

    @abstractmethod
    def set_registers(self, thread: Tracee, registers: Registers) -> None:
        """Set them all at once: the thread goes on from there, and no interrupted system call starts again by itself."""

    @abstractmethod
    def vectors(self, thread: Tracee) -> bytes:
        """The state of the floating-point and vector unit."""

    def lost(self, thread: Tracee) -> str:  # noqa: ARG002
        """What the thread is using that a way back would not restore, in words; "" when nothing."""
        return ""

    @abstractmethod
    def set_vectors(self, thread: Tracee, state: bytes) -> None:
        """Put back what `vectors` gave."""

    def restart_is_undecided(self, before: Registers, memory: int) -> bool:  # noqa: ARG002
        """Whether a thread that was stopped with `before` may make another system call than its registers say.

        It is then let go as far as that call's entry, which tells.
        """
        return False

    @abstractmethod
    def resumed(self, before: Registers, enters: int | None) -> Registers:
        """The registers with which a thread that was stopped with `before` goes on: an interrupted system call starts again.

        `enters`: the system call to whose entry it has been let go, if it was.
        """

    @abstractmethod
    def place(self, before: Registers, home: Registers) -> tuple[int, int, int]:
        """System call, stack pointer and instruction pointer of a stopped thread, as /proc/PID/syscall gives them."""

    @abstractmethod
    def entered(self, thread: Tracee) -> tuple[int, int] | None:
        """At a stop for a system call: which one the thread enters, and its stack pointer; None when it leaves one."""

    def skip_to(self, thread: Tracee, instruction: int, stack: int) -> None:  # noqa: ARG002
        """At a system call's entry: have the thread go on at `instruction` without it. Killed within, it goes there too.

        Asked only of a machine that `hides_registers_at_syscalls`, or whose `restart_is_undecided`.
        """
        raise AssertionError(f"{self.name} has no need of that")

    @abstractmethod
    def result(self, registers: Registers) -> int:
        """What a system call has returned, unsigned, as the thread leaves it."""

    @abstractmethod
    def slot(self, address: int) -> int:
        """The nearest place at or below `address` for a way back, aligned as a function's entry wants its stack."""

    @abstractmethod
    def way_back(self, slot: int, code: Code, state: State) -> bytes:
        """What lies at `slot`, so that a function which is called with its stack pointer there returns to `state`."""

    @abstractmethod
    def way_back_bytes(self, vectors: bytes) -> int:
        """Room that `way_back` takes, alignment included."""

    @abstractmethod
    def stack_on_way_back(self, slot: int) -> int:
        """The stack pointer with which rt_sigreturn is then entered."""

    @abstractmethod
    def to_system_call(self, before: Registers, slot: int, code: Code, number: int, arguments: Sequence[int]) -> Registers:
        """The registers that make one system call; the way back lies at `slot`."""

    @abstractmethod
    def to_function(self, before: Registers, slot: int, code: Code, function: int, arguments: Sequence[int]) -> Registers:
        """The registers that make one call; the way back lies at `slot`."""

    @abstractmethod
    def tour(
        self, state: State, top: int, code: Code, calls: Sequence[tuple[int, int | None]], data: bytes
    ) -> tuple[int, bytes, Registers]:
        """One call after the other, each with one argument or none, and then the way home, which nobody waits for.

        Gives what has to lie where, below `top`, and the registers that set off.
        """

    @abstractmethod
    def code_address(self, word: int, highest: int) -> int:
        """A word of the stack as an address of code, when it is one; `highest`: the end of the address space."""

    @abstractmethod
    def follows_call(self, before: bytes) -> bool:
        """Whether the `call_bytes` before an address end in an instruction that calls."""

    @abstractmethod
    def has_shadow_stack(self, pid: int) -> bool:
        """Whether the processor checks the target's returns against a copy that we cannot write."""
