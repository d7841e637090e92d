"""Who started whom, by /proc: for processes of this host that we see under the driver's own numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: A chain of launchers is a handful long; /proc changes while it is read, so that a loop must not be followed for ever.
_LONGEST_CHAIN = 32


def ancestors(processes: Iterable[tuple[int, int]]) -> dict[int, tuple[int, ...]]:
    """pid -> its parent, that one's parent, and so on; `processes` are (pid, start time in clock ticks).

    A process whose start time is not the one that was told is another's (a pid of another namespace): it has none.
    """
    known: dict[int, tuple[int, int]] = {}
    found = {}
    for pid, start_ticks in processes:
        parent, started = _stat(pid, known)
        chain: list[int] = []
        while parent > 1 and started == start_ticks and len(chain) < _LONGEST_CHAIN and parent not in chain:
            chain.append(parent)
            parent, _ = _stat(parent, known)
        found[pid] = tuple(chain)
    return found


def _stat(pid: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """(parent, start time) of a process; (0, -1) of one that is gone. Each is read once."""
    if pid not in known:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            known[pid] = (int(fields[1]), int(fields[19]))
        except (OSError, IndexError, ValueError):
            known[pid] = (0, -1)
    return known[pid]
