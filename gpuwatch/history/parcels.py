"""Files that a job sent on request, taken from its journal: profiler traces, allocator snapshots."""

from __future__ import annotations

from pathlib import Path

from gpuwatch.history.past import JOURNAL_FOLDER
from gpuwatch.state import frames
from gpuwatch.state.journal_reader import JournalReader
from gpuwatch.state.records import DecodeError, Media

_FRAMES_A_READ = 4096


class Parcels:
    """A reader of one process's journal that only looks at media of one kind. Close it. Raises OSError without a journal."""

    def __init__(self, directory: Path, kind: str) -> None:
        self._kind = kind
        self._reader = JournalReader(directory / JOURNAL_FOLDER)

    def next(self) -> list[Media]:
        """What the journal holds now behind the last call."""
        found = []
        while entries := self._reader.read(_FRAMES_A_READ):
            for entry in entries:
                if entry.frame.kind != frames.KIND_MEDIA:
                    continue
                try:
                    media = entry.frame.decode()
                except DecodeError:
                    continue
                if isinstance(media, Media) and media.kind == self._kind:
                    found.append(media)
        return found

    def close(self) -> None:
        self._reader.close()
