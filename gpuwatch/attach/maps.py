"""The memory map of another process, and its mapped files as that process sees them."""

from __future__ import annotations

import os
from typing import BinaryIO, NamedTuple


class Mapping(NamedTuple):
    """One line of /proc/PID/maps; `path` is empty for anonymous memory."""

    start: int
    end: int
    permissions: str
    offset: int
    path: str


def read_maps(pid: int) -> list[Mapping]:
    """Every mapping of `pid`, in address order. Raises OSError when the process is gone or not ours to read."""
    mappings = []
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.rstrip("\n").split(None, 5)
            start, _, end = fields[0].partition("-")
            path = fields[5] if len(fields) > 5 else ""
            mappings.append(Mapping(int(start, 16), int(end, 16), fields[1], int(fields[2], 16), path))
    return mappings


def open_mapped(pid: int, mapping: Mapping) -> BinaryIO:
    """The file behind a mapping, through the target's own mount namespace.

    map_files also survives a file that was deleted or replaced (an upgraded interpreter), but needs CAP_CHECKPOINT_RESTORE.
    Raises OSError when neither way works.
    """
    through_root = f"/proc/{pid}/root{mapping.path.removesuffix(' (deleted)')}"
    through_maps = f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}"
    first, second = (through_maps, through_root) if mapping.path.endswith(" (deleted)") else (through_root, through_maps)
    try:
        return open(first, "rb")
    except OSError:
        return open(second, "rb")


def load_bias(mappings: list[Mapping], path: str, first_load_vaddr: int) -> int:
    """What to add to a symbol's address in the file `path`: where its first segment was mapped less where it asked to be."""
    base = min(m.start for m in mappings if m.path == path and m.offset == 0)
    return base - (first_load_vaddr & ~(os.sysconf("SC_PAGE_SIZE") - 1))


def free_range(mappings: list[Mapping], size: int, above: int = 0x10_0000_0000) -> int:
    """A page-aligned address with `size` free bytes and a free page at either side; raises ValueError when there is none."""
    page = os.sysconf("SC_PAGE_SIZE")
    cursor = above
    for mapping in mappings:
        if mapping.start - cursor >= size + 2 * page:
            return cursor + page
        cursor = max(cursor, (mapping.end + page - 1) & -page)
        if cursor > 0x7000_0000_0000:
            break
    raise ValueError(f"no {size} free bytes in the target's address space")


def main_stack(mappings: list[Mapping]) -> range:
    """Where the main thread's stack pointer may be: its mapping, and what lies free below it; empty when it is not named."""
    below = 0
    for mapping in mappings:
        if mapping.path == "[stack]":
            return range(below, mapping.end)
        below = mapping.end
    return range(0)


def place(mappings: list[Mapping], address: int) -> str:
    """An address as a person can look it up: "libc.so.6+0x1234" in the file's own offsets, or the bare number."""
    for mapping in mappings:
        if mapping.start <= address < mapping.end:
            return f"{os.path.basename(mapping.path) or 'anonymous'}+{address - mapping.start + mapping.offset:#x}"
    return f"{address:#x}"
