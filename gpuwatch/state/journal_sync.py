"""Puts on the disk what the journals hold, seconds behind, on a thread that may wait.

A record is acknowledged once `os.write` has it: that survives the daemon's kill -9, since the page cache is the kernel's. A
power failure takes the page cache too, and left to itself the kernel writes it back after some 30 s. With a turn each few
seconds that is the most a power failure costs. A write never waits for a turn: a disk that hangs in one stops this alone.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from gpuwatch.state.journal import segment_name

if TYPE_CHECKING:
    from gpuwatch.state.journal import JournalWriter
    from gpuwatch.state.store import State

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Place(msgspec.Struct, frozen=True):
    """How far a journal goes, or went when it was synced."""

    segment: int
    offset: int


class JournalSync:
    """`turn` is one component's turn, to be called from a thread of its own. Raises OSError when a disk refuses."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._synced: dict[str, _Place] = {}  # run directory -> what is on the disk

    def turn(self) -> None:
        """Sync every journal that has grown since the last turn."""
        errors = [error for directory, fd, place in self._grown() if (error := self._sync(directory, fd, place)) is not None]
        if errors:
            raise errors[0]

    def _grown(self) -> list[tuple[str, int, _Place]]:
        """(run directory, a descriptor of its journal's directory that is ours to close, where the journal ends)."""
        with self._state.lock:
            journals = {directory: run.journal for directory, run in self._state.runs.items() if run.journal is not None}
            self._synced = {directory: place for directory, place in self._synced.items() if directory in journals}
            ends = {directory: _end(journal) for directory, journal in journals.items()}
            return [
                (directory, os.dup(journals[directory].directory_fd), end)
                for directory, end in ends.items()
                if end.segment and end != self._synced.get(directory)
            ]

    def _sync(self, directory: str, directory_fd: int, end: _Place) -> OSError | None:
        """Sync the segments from the last synced one on: a full one has got its end since then."""
        known = self._synced.get(directory)
        try:
            for number in range(known.segment if known is not None else end.segment, end.segment + 1):
                _sync_file(segment_name(number), directory_fd)
            if known is None or known.segment != end.segment:
                os.fsync(directory_fd)  # a file that is not in its directory is lost with all its data
        except OSError as error:
            return error
        finally:
            os.close(directory_fd)
        self._synced[directory] = end
        return None


def _end(journal: JournalWriter) -> _Place:
    return _Place(journal.segment, journal.offset)


def _sync_file(name: str, directory_fd: int) -> None:
    try:
        fd = os.open(name, _FLAGS, dir_fd=directory_fd)
    except FileNotFoundError:
        return  # deleted since, to keep the journal under its limit
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)
