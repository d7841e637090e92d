"""Find exported functions in an ELF file: the few lines of the format that this takes, every offset checked.

The file belongs to the target and may be hostile: whatever it holds, the result is addresses or ElfError.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable
from typing import BinaryIO, NamedTuple

_PT_LOAD = 1
_SHT_SYMTAB, _SHT_DYNSYM = 2, 11
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_MAX_HEADERS = 4096
EM_X86_64, EM_AARCH64 = 62, 183


class ElfError(ValueError):
    """Not a 64-bit little-endian ELF file, or a damaged one."""


class Symbols(NamedTuple):
    """What was found: virtual addresses as the file asks for them, and the address of its first segment."""

    addresses: dict[str, int]
    first_load_vaddr: int
    machine: int
    sizes: dict[str, int]


def find_symbols(file: BinaryIO, names: Iterable[str]) -> Symbols:
    """Look `names` up among the exported symbols, then (if not stripped) among all; absent ones are left out."""
    try:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as image:
            return _find(image, tuple(names))
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise ElfError(str(error)) from None


def _find(image: mmap.mmap, names: tuple[str, ...]) -> Symbols:
    if image[:4] != b"\x7fELF" or image[4] != 2 or image[5] != 1:
        raise ElfError("not a 64-bit little-endian ELF file")
    (machine,) = struct.unpack_from("<H", image, 0x12)
    (program_offset, section_offset) = struct.unpack_from("<QQ", image, 0x20)
    (program_size, program_count, section_size, section_count) = struct.unpack_from("<HHHH", image, 0x36)
    if max(program_count, section_count) > _MAX_HEADERS or section_size < _SECTION_HEADER.size:
        raise ElfError("headers out of range")
    programs = [_PROGRAM_HEADER.unpack_from(image, program_offset + i * program_size) for i in range(program_count)]
    loads = [program[3] for program in programs if program[0] == _PT_LOAD]
    if not loads:
        raise ElfError("no loadable segment")
    sections = [_SECTION_HEADER.unpack_from(image, section_offset + i * section_size) for i in range(section_count)]
    found: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for wanted_type in (_SHT_DYNSYM, _SHT_SYMTAB):
        for section in sections:
            if section[1] == wanted_type and len(found) < len(names):
                _search(image, section, sections[section[6]], names, found, sizes)
    return Symbols(found, loads[0], machine, sizes)


def _search(
    image: mmap.mmap,
    section: tuple[int, ...],
    strings: tuple[int, ...],
    names: tuple[str, ...],
    found: dict[str, int],
    sizes: dict[str, int],
) -> None:
    """Add each name's address to `found`, its length to `sizes`.

    The string table is searched first, since it is far shorter than the symbols.
    """
    table = image[strings[4] : strings[4] + strings[5]]
    offsets = {}
    for name in names:
        at = table.find(name.encode() + b"\0")
        while at >= 0 and name not in found:  # linkers let a short name be the tail of a longer one, so every place counts
            offsets[at] = name
            at = table.find(name.encode() + b"\0", at + 1)
    if not offsets:
        return
    symbols = image[section[4] : section[4] + section[5] // _SYMBOL.size * _SYMBOL.size]
    for name_offset, _info, _other, section_index, value, size in _SYMBOL.iter_unpack(symbols):
        if name_offset in offsets and section_index:
            found.setdefault(offsets[name_offset], value)
            sizes.setdefault(offsets[name_offset], size)
