"""Where an injection enters: functions of the interpreter and two instruction sequences of libc, found before any stop."""

from __future__ import annotations

import os
from typing import NamedTuple

from gpuwatch.attach.elf import ElfError, find_symbols
from gpuwatch.attach.machine import Code, Machine
from gpuwatch.attach.machines import here
from gpuwatch.attach.maps import Mapping, free_range, load_bias, main_stack, open_mapped, read_maps

#: Room that is looked for in the target's address space.
MAX_AREA_BYTES = 4 << 20
_NEEDED = ("Py_AddPendingCall", "PyRun_SimpleString")
_NEEDED_FOR_VISIT = ("PyGILState_Ensure", "PyRun_SimpleString", "PyGILState_Release")


class InjectError(Exception):
    """The text was not filed; the target goes on as before."""


class ElsewhereError(InjectError):
    """The thread was stopped where we touch nothing; a moment later it is somewhere else."""


class EntryPoints(NamedTuple):
    """Addresses in the target, resolved before it is stopped."""

    add_pending_call: int
    run_simple_string: int
    code: Code
    interpreter: str  # the mapped file that exports the C API
    stack: range  # addresses that the main thread's stack has or may grow into; empty when the kernel does not name it
    free: int  # where the target had room when it was looked at; taken by somebody since, the kernel says so
    mappings: list[Mapping]
    machine: Machine


class VisitPoints(NamedTuple):
    """What a visit to the interpreter needs besides: three functions of its C API."""

    ensure: int
    run_simple_string: int
    release: int


def resolve_visit(pid: int) -> tuple[EntryPoints, VisitPoints]:
    """As `resolve`, and what a visit needs besides."""
    entry = resolve(pid, tour=True)
    symbols, _ = _find_c_api(pid, entry.mappings, _NEEDED_FOR_VISIT, entry.machine)
    return entry, VisitPoints(*(symbols[name] for name in _NEEDED_FOR_VISIT))


def resolve(pid: int, *, tour: bool = False) -> EntryPoints:
    """Find the C API and some instruction sequences of libc in the target. Raises InjectError, or OSError when it is gone."""
    machine = here()
    if machine is None:
        raise InjectError(
            f"the injector is built for x86-64 and aarch64, this machine is {os.uname().machine}: there gdb still works, "
            "and from Python 3.14 on the interpreter's own way (remote-debug)"
        )
    mappings = read_maps(pid)
    symbols, interpreter = _find_c_api(pid, mappings, _NEEDED, machine)
    patterns = (machine.system_call_code, machine.way_back_code, *(machine.tour_code if tour else ()))
    system_call, way_back, *others = _find_code(pid, mappings, patterns, machine)
    free = free_range(mappings, MAX_AREA_BYTES)
    calls = (symbols["Py_AddPendingCall"], symbols["PyRun_SimpleString"])
    code = Code(system_call, way_back, tuple(others))
    return EntryPoints(*calls, code, interpreter, main_stack(mappings), free, mappings, machine)


def runtime_state(pid: int, mappings: list[Mapping], machine: Machine) -> range:
    """Where the interpreter keeps its own state (`_PyRuntime`), its lock among it. Raises as `resolve`."""
    symbols, interpreter = _find_c_api(pid, mappings, ("_PyRuntime",), machine)
    with open_mapped(pid, next(m for m in mappings if m.path == interpreter and m.offset == 0)) as file:
        size = find_symbols(file, ("_PyRuntime",)).sizes["_PyRuntime"]
    return range(symbols["_PyRuntime"], symbols["_PyRuntime"] + size)


def _find_c_api(pid: int, mappings: list[Mapping], names: tuple[str, ...], machine: Machine) -> tuple[dict[str, int], str]:
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
            if symbols.machine != machine.elf_machine:
                raise InjectError(f"{name} is not {machine.name} code, which this machine is")
            bias = load_bias(mappings, path, symbols.first_load_vaddr)
            return {key: value + bias for key, value in symbols.addresses.items()}, path
    raise InjectError(f"{executable} exports no CPython C API: not a Python process, or a build that hides it")


def _find_code(pid: int, mappings: list[Mapping], patterns: tuple[bytes, ...], machine: Machine) -> list[int]:
    """Addresses of these bytes in code of the target's libraries, libc first."""
    vdso = ("[vdso]",) if machine.vdso_has_way_back else ()
    code = [m for m in mappings if "x" in m.permissions and (m.path.startswith("/") or m.path in vdso)]
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
