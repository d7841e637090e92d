"""Where an injection enters: functions of the interpreter and two instruction sequences of libc, found before any stop."""

from __future__ import annotations

import os
from typing import NamedTuple

from gpuwatch.attach.elf import EM_X86_64, ElfError, find_symbols
from gpuwatch.attach.maps import Mapping, free_range, load_bias, main_stack, open_mapped, read_maps

#: Room that is looked for in the target's address space.
MAX_AREA_BYTES = 4 << 20
_SYSCALL_RET = b"\x0f\x05\xc3"
_RESTORE_RT = b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05"  # mov rax, 15; syscall: what every libc returns to after a signal handler
_NEEDED = ("Py_AddPendingCall", "PyRun_SimpleString")
_POP_RDI_RET = b"\x5f\xc3"
_NEEDED_FOR_VISIT = ("PyGILState_Ensure", "PyRun_SimpleString", "PyGILState_Release")


class InjectError(Exception):
    """The text was not filed; the target goes on as before."""


class EntryPoints(NamedTuple):
    """Addresses in the target, resolved before it is stopped."""

    add_pending_call: int
    run_simple_string: int
    syscall_ret: int
    restore_rt: int
    interpreter: str  # the mapped file that exports the C API
    stack: range  # addresses that the main thread's stack has or may grow into; empty when the kernel does not name it
    free: int  # where the target had room when it was looked at; taken by somebody since, the kernel says so
    mappings: list[Mapping]


class VisitPoints(NamedTuple):
    """What a visit to the interpreter needs besides: three functions of its C API, and `pop rdi; ret`."""

    ensure: int
    run_simple_string: int
    release: int
    pop_rdi_ret: int


def resolve_visit(pid: int) -> VisitPoints:
    """As `resolve`."""
    mappings = read_maps(pid)
    symbols, _ = _find_c_api(pid, mappings, _NEEDED_FOR_VISIT)
    return VisitPoints(*(symbols[name] for name in _NEEDED_FOR_VISIT), *_find_gadgets(pid, mappings, (_POP_RDI_RET,)))


def resolve(pid: int) -> EntryPoints:
    """Find the C API and two instruction sequences of libc in the target. Raises InjectError, or OSError when it is gone."""
    mappings = read_maps(pid)
    symbols, interpreter = _find_c_api(pid, mappings, _NEEDED)
    syscall_ret, restore_rt = _find_gadgets(pid, mappings, (_SYSCALL_RET, _RESTORE_RT))
    free = free_range(mappings, MAX_AREA_BYTES)
    calls = (symbols["Py_AddPendingCall"], symbols["PyRun_SimpleString"])
    return EntryPoints(*calls, syscall_ret, restore_rt, interpreter, main_stack(mappings), free, mappings)


def _find_c_api(pid: int, mappings: list[Mapping], names: tuple[str, ...]) -> tuple[dict[str, int], str]:
    executable = os.readlink(f"/proc/{pid}/exe")
    files = {m.path: m for m in reversed(mappings) if m.path.startswith("/") and m.offset == 0}
    # libpython first: a shared build's executable is a shell around it. Then the executable (Debian's, conda's layout).
    order = sorted(files, key=lambda path: (not os.path.basename(path).startswith("libpython"), path != executable))
    for path in order:
        name = os.path.basename(path)
        if not (name.startswith("libpython") or path == executable):
            break
        try:
            with open_mapped(pid, files[path]) as file:
                symbols = find_symbols(file, names)
        except (OSError, ElfError):
            continue
        if len(symbols.addresses) == len(names):
            if symbols.machine != EM_X86_64:
                raise InjectError(f"{name} is not x86-64 code: only that is supported so far")
            bias = load_bias(mappings, path, symbols.first_load_vaddr)
            return {key: value + bias for key, value in symbols.addresses.items()}, path
    raise InjectError(f"{executable} exports no CPython C API: not a Python process, or a build that hides it")


def _find_gadgets(pid: int, mappings: list[Mapping], patterns: tuple[bytes, ...]) -> list[int]:
    """Addresses of these bytes in code of the target's libraries, libc first."""
    code = [m for m in mappings if "x" in m.permissions and m.path.startswith("/")]
    code.sort(key=lambda m: not os.path.basename(m.path).startswith(("libc.so", "libc-", "ld-musl", "libpthread")))
    found: dict[bytes, int] = {}
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for mapping in code:
            image = os.pread(memory.fileno(), mapping.end - mapping.start, mapping.start)
            for pattern in patterns:
                at = image.find(pattern)
                if at >= 0:
                    found.setdefault(pattern, mapping.start + at)
            if len(found) == len(patterns):
                return [found[pattern] for pattern in patterns]
    raise InjectError("no libc that we know in the target")
