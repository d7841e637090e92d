"""aarch64: what it takes from the manuals is checked everywhere, what only a processor can tell on one (tests/attach/arm64)."""

import ctypes
import os
import shutil
import struct
import subprocess
import sys
import time

import pytest

from gpuwatch.attach import attacher, gdb, preflight
from gpuwatch.attach.entry import InjectError, resolve
from gpuwatch.attach.injector import inject
from gpuwatch.attach.machine import DATA, Code, State
from gpuwatch.attach.machines import aarch64, aarch64_frame
from gpuwatch.attach.machines.aarch64 import Aarch64
from gpuwatch.attach.process import read_process
from tests.attach.conftest import TARGETS, until
from tests.attach.test_injector import call_cbrt, inject_and_die, matmul_counts
from tests.running_daemon import PATIENCE

sys.path.append(str(TARGETS))
import spin_code  # the targets run by themselves and import by name

on_aarch64 = pytest.mark.skipif(os.uname().machine != "aarch64", reason="needs aarch64, not x86-64 (make attach-arm64)")
MACHINE = Aarch64()
CODE = Code(system_call=0x4000, way_back=0x5000)
REGISTERS = {name: 0x1000 + number for number, name in enumerate(aarch64._NAMES)} | {"sp": 0x7FFF0000, "pc": 0x400000}


class _Context(ctypes.Structure):
    """struct sigcontext, from arch/arm64/include/uapi/asm/sigcontext.h."""

    _fields_ = [
        ("fault_address", ctypes.c_uint64),
        ("regs", ctypes.c_uint64 * 31),
        ("sp", ctypes.c_uint64),
        ("pc", ctypes.c_uint64),
        ("pstate", ctypes.c_uint64),
        ("aligned_to_16", ctypes.c_uint64),
        ("reserved", ctypes.c_uint8 * 4096),
    ]


class _SignalFrame(ctypes.Structure):
    """struct rt_sigframe: siginfo_t, then struct ucontext."""

    _fields_ = [
        ("siginfo", ctypes.c_uint8 * 128),
        ("flags", ctypes.c_uint64),
        ("link", ctypes.c_uint64),
        ("stack_pointer", ctypes.c_uint64),
        ("stack_flags", ctypes.c_uint32),
        ("stack_size", ctypes.c_uint64),
        ("mask", ctypes.c_uint64),
        ("unused", ctypes.c_uint8 * 120),
        ("aligned_to_16", ctypes.c_uint64),
        ("context", _Context),
    ]


def records(raw, address):
    """The records of a frame by their magic, read with the kernel's own rules (parse_user_sigframe in signal.c)."""
    at, end, found, extra = _SignalFrame.context.offset + _Context.reserved.offset, 0, {}, False
    end = at + 4096
    while True:
        assert at % 16 == 0
        assert at + 8 <= end
        magic, size = struct.unpack_from("<II", raw, at)
        if magic == 0:
            assert size == 0
            return found
        assert size >= 16
        assert at + size <= end
        assert magic not in found
        if magic == 0x45585401:
            pointer, extra_bytes = struct.unpack_from("<QI", raw, at + 8)
            assert not extra
            assert struct.unpack_from("<QQ", raw, at + size) == (0, 0)
            assert pointer == address + at + size + 16
            assert extra_bytes % 16 == 0
            at, extra = at + size + 16, True
            end = at + extra_bytes
            continue
        found[magic] = raw[at : at + size]
        at += size


def vectors(vector_bytes):
    """NT_PRFPREG and, of that length or none, NT_ARM_SVE: every byte of a register another one."""
    fpsimd = bytes(number % 251 for number in range(512)) + struct.pack("<IIII", 11, 22, 0, 0)
    if not vector_bytes:
        return fpsimd, b"", b""
    payload = bytes(number % 241 for number in range(32 * vector_bytes + 17 * (vector_bytes // 8)))
    size = 16 + (len(payload) + 15 & ~15) + 16
    head = struct.pack("<IIHHHH", size, size, vector_bytes, vector_bytes, 1, 0)
    return fpsimd, (head + payload).ljust(size, b"\0"), payload


@pytest.mark.parametrize("vector_bytes", [0, 16, 32, 64, 128, 256])
def test_a_frame_says_what_the_kernel_reads(vector_bytes):
    fpsimd, sve, payload = vectors(vector_bytes)
    address = 0x7FFE0000
    raw = MACHINE.way_back(address, CODE, State(REGISTERS, fpsimd + sve, 0xABCDEF))
    assert len(raw) <= MACHINE.way_back_bytes(fpsimd + sve)
    frame = _SignalFrame.from_buffer_copy(raw)
    assert list(frame.context.regs) == [REGISTERS[f"x{number}"] for number in range(31)]
    assert (frame.context.sp, frame.context.pc, frame.context.pstate) == tuple(REGISTERS[n] for n in ("sp", "pc", "pstate"))
    assert frame.mask == 0xABCDEF
    assert frame.stack_flags not in (0, 1, 2)  # what the kernel refuses, so that the thread's own stays
    found = records(raw, address)
    fpsimd_record = found.pop(0x46508001)
    assert struct.unpack_from("<II", fpsimd_record, 8) == (11, 22)
    assert fpsimd_record[16:] == fpsimd[:512]
    if vector_bytes:
        record = found.pop(0x53564501)
        assert struct.unpack_from("<HH", record, 8) == (vector_bytes, 0)
        assert record[16 : 16 + len(payload)] == payload
    assert found == {}


def test_a_frame_for_another_address_is_refused():
    fpsimd, sve, _ = vectors(32)
    raw = MACHINE.way_back(0x7FFE0000, CODE, State(REGISTERS, fpsimd + sve, 0))
    with pytest.raises(AssertionError):
        records(raw, 0x7FFE0010)


def test_scalable_registers_are_kept_only_where_there_are_any():
    _, sve, _ = vectors(32)
    assert aarch64_frame.uses_sve(sve)
    assert not aarch64_frame.uses_sve(sve[:12] + bytes(4) + sve[16:])  # the 128-bit ones in their place
    assert not aarch64_frame.uses_sve(b"")


def test_a_call_is_made_as_the_convention_wants_it():
    landing = REGISTERS | {"pstate": 0x60000C00}  # stopped right behind an indirect branch
    made = MACHINE.to_function(landing, 0x7FFE0000, CODE, 0x1234, (7, 8))
    changed = {name: value for name, value in made.items() if value != landing[name]}
    assert changed == {"pc": 0x1234, "sp": 0x7FFE0000, "x30": 0x5000, "x0": 7, "x1": 8, "pstate": 0x60000000}
    call = MACHINE.to_system_call(REGISTERS, 0x7FFE0000, CODE, 222, (1, 2, 3, 4, 5, 6))
    assert [call[f"x{number}"] for number in (*range(6), 8, 30)] == [1, 2, 3, 4, 5, 6, 222, 0x5000]
    assert call["pc"] == 0x4000
    assert MACHINE.slot(0x7FFE000F) == 0x7FFE0000


def test_a_tour_makes_each_call_and_ends_at_home():
    fpsimd, sve, _ = vectors(64)
    state = State(REGISTERS, fpsimd + sve, 5)
    top = 0x7FFE0000
    at, raw, registers = MACHINE.tour(state, top, CODE, ((0x111000, None), (0x222000, DATA), (0x333000, 1)), b"text\0")
    assert at + len(raw) <= top + MACHINE.way_back_bytes(state.vectors)
    assert (registers["pc"], registers["sp"], registers["x30"]) == (0x111000, at, 0x5000)
    second = _SignalFrame.from_buffer_copy(raw).context
    assert (second.pc, second.regs[30]) == (0x222000, 0x5000)
    assert raw[second.regs[0] - at :].startswith(b"text\0")
    third = _SignalFrame.from_buffer_copy(raw, second.sp - at).context
    assert (third.pc, third.regs[0], third.regs[30]) == (0x333000, 1, 0x5000)
    home = _SignalFrame.from_buffer_copy(raw, third.sp - at).context
    assert (home.pc, home.sp, list(home.regs)) == (
        REGISTERS["pc"],
        REGISTERS["sp"],
        [REGISTERS[f"x{number}"] for number in range(31)],
    )
    assert set(records(raw[third.sp - at :], third.sp)) == {0x46508001, 0x53564501}
    assert all(stack % 16 == 0 for stack in (at, second.sp, third.sp))


#: Every form of instruction that we look for, ask about or run in the tests.
ENCODINGS = {
    "mov x8, #139": 0xD2801168,
    "svc #0": 0xD4000001,
    "svc #7": 0xD40000E1,
    "ret": 0xD65F03C0,
    "bl .+64": 0x94000010,
    "bl .-64": 0x97FFFFF0,
    "blr x3": 0xD63F0060,
    "blraaz x3": 0xD63F087F,
    "blrab x3, x4": 0xD73F0C64,
    "br x3": 0xD61F0060,
    "b .+64": 0x14000010,
    "nop": 0xD503201F,
    "stp x19, x20, [sp, #0]": 0xA90053F3,
    "ldr z9, [x3, #9, mul vl]": 0x85814469,
    "str p15, [x3, #15, mul vl]": 0xE5811C6F,
    "ld1 {v4.16b-v7.16b}, [x3], #64": 0x4CDF2064,
}


def test_instructions_are_what_an_assembler_makes_of_them(tmp_path):
    """Without an assembler for it, at least what one has made."""
    spins = [pair for sve in (False, True) for pair in spin_code.instructions(sve=sve)]
    for assembly, word in spins:
        assert ENCODINGS.get(assembly, word) == word
    if shutil.which("aarch64-linux-gnu-as"):
        given = [*ENCODINGS.items(), *spins]
        source, made, flat = (tmp_path / name for name in ("x.s", "x.o", "x.bin"))
        source.write_text(".arch armv8.5-a+sve\n" + "".join(assembly + "\n" for assembly, _ in given))
        subprocess.run(["aarch64-linux-gnu-as", source, "-o", made], check=True, timeout=30)
        subprocess.run(["aarch64-linux-gnu-objcopy", "-O", "binary", made, flat], check=True, timeout=30)
        assert [word for _, word in given] == [word for (word,) in struct.iter_unpack("<I", flat.read_bytes())]


def test_the_code_that_is_looked_for():
    words = [ENCODINGS[name] for name in ("svc #0", "ret", "mov x8, #139", "svc #0")]
    assert MACHINE.system_call_code + MACHINE.way_back_code == struct.pack("<4I", *words)


def test_return_addresses_are_known_by_the_call_before_them():
    calls = {name for name, word in ENCODINGS.items() if MACHINE.follows_call(struct.pack("<I", word))}
    assert calls == {"bl .+64", "bl .-64", "blr x3", "blraaz x3", "blrab x3, x4"}
    signed = 0x0055_AAAA_1234_5678  # bits 48 to 54 are a signature
    assert MACHINE.code_address(signed, 0xFFFF_FFFF_F000) == 0xAAAA_1234_5678
    assert MACHINE.code_address(0x0055_AA7F_1234_5678, 0x7F_FFFF_F000) == 0x7F_1234_5678  # a kernel with 39-bit addresses


def test_a_machine_that_is_neither_is_refused_in_a_sentence(monkeypatch, launch):
    target = launch("busy.py")
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "here", "6", "1", "riscv64")))
    with pytest.raises(InjectError, match="built for x86-64 and aarch64, this machine is riscv64: there gdb still works, and"):
        resolve(target.pid)
    process = read_process(target.pid)
    assert attacher.choose(process, "auto") == "gdb"
    monkeypatch.setattr(gdb, "available", lambda: False)
    found = {finding.code: finding for finding in preflight.check(process)}
    assert "this is riscv64, and there is no gdb" in found["architecture"].sentence


KINDS = [[], ["sve"]]


def spinning(launch, tmp_path, kind):
    if kind and not ctypes.CDLL(None).prctl(51, 0, 0, 0, 0) > 0:
        pytest.skip("this aarch64 processor has no SVE, as no x86-64 has")
    return launch("spin.py", tmp_path / "counts", *kind)


@on_aarch64
@pytest.mark.parametrize("kind", KINDS)
def test_no_register_is_changed(kind, launch, tmp_path):
    target = spinning(launch, tmp_path, kind)
    call_cbrt(target.pid, 40)
    good, bad = until(lambda: matmul_counts(tmp_path / "counts"))
    assert bad == 0
    until(lambda: matmul_counts(tmp_path / "counts")[0] > good)
    assert matmul_counts(tmp_path / "counts")[1] == 0


def comes_to_harm(launch, tmp_path, kind):
    target = spinning(launch, tmp_path, kind)
    for _ in range(20):
        call_cbrt(target.pid, 5)
        time.sleep(0.1 * PATIENCE)
        if target.poll() is not None or matmul_counts(tmp_path / "counts")[1]:
            return True
    return False


@on_aarch64
@pytest.mark.parametrize("kind", KINDS)
def test_twin_without_the_vector_registers(kind, launch, tmp_path, monkeypatch):
    monkeypatch.setattr(Aarch64, "set_vectors", lambda *_: None)
    assert comes_to_harm(launch, tmp_path, kind)


def use_x7(monkeypatch):
    """As if the function that is called used x7, which it may."""
    real = Aarch64.to_function
    monkeypatch.setattr(Aarch64, "to_function", lambda *given: real(*given) | {"x7": 0xBAD})


@on_aarch64
def test_a_function_that_uses_x7_changes_nothing(launch, tmp_path, monkeypatch):
    use_x7(monkeypatch)
    assert not comes_to_harm(launch, tmp_path, [])


@on_aarch64
def test_twin_that_sets_all_registers_at_the_system_call_loses_x7(launch, tmp_path, monkeypatch):
    real = Aarch64.set_registers

    def at_once(machine, thread, registers):
        real(machine, thread, registers)
        if thread.at_syscall:
            thread.set_register_set(aarch64._NT_ARM_SYSTEM_CALL, aarch64._NO_SYSTEM_CALL)

    use_x7(monkeypatch)
    monkeypatch.setattr(Aarch64, "set_registers", at_once)
    monkeypatch.setattr(Aarch64, "hides_registers_at_syscalls", False)
    assert comes_to_harm(launch, tmp_path, [])


def killed_before_every_call(target):
    """How many calls there are; or None when the target has not survived it."""
    calls = 0
    while inject_and_die(target.pid, calls) and target.poll() is None:
        calls += 1
    return calls if target.poll() is None else None


@on_aarch64
@pytest.mark.parametrize("kind", KINDS)
def test_no_register_is_changed_where_the_attacher_is_killed(kind, launch, tmp_path):
    target = spinning(launch, tmp_path, kind)
    assert killed_before_every_call(target) >= 20
    good, bad = until(lambda: matmul_counts(tmp_path / "counts"))
    until(lambda: matmul_counts(tmp_path / "counts")[0] > good)
    assert matmul_counts(tmp_path / "counts")[1] == bad == 0


@on_aarch64
def test_twin_without_the_scalable_record_they_are(launch, tmp_path, monkeypatch):
    real = aarch64_frame.build
    monkeypatch.setattr(aarch64_frame, "build", lambda at, home, vectors, mask: real(at, home, vectors[:528], mask))
    target = spinning(launch, tmp_path, ["sve"])
    killed_before_every_call(target)
    until(lambda: target.poll() is not None or matmul_counts(tmp_path / "counts")[1])


@on_aarch64
def test_a_sleeping_target_where_the_attacher_is_killed(launch):
    """Its system call is left before anything else, which takes some calls more."""
    target = launch("busy.py", "nap", 5 * PATIENCE)
    began = time.monotonic()
    assert killed_before_every_call(target) >= 24
    word, seconds = target.stdout.readline().split()
    assert word in ("slept", "interrupted")  # a sleep that the killed attacher has interrupted may end early: EINTR, which its
    assert float(seconds) < time.monotonic() - began + 5 * PATIENCE  # caller is told


@on_aarch64
def test_twin_that_trusts_the_registers_begins_a_sleep_anew(launch, monkeypatch):
    monkeypatch.setattr(aarch64, "_RESTARTED_OTHERWISE", frozenset())
    target = launch("busy.py", "nap", 3)
    began = time.monotonic()
    while time.monotonic() < began + 2.0:
        inject(target.pid, lambda *_: "pass")
    assert float(target.stdout.readline().split()[1]) > 4.5
