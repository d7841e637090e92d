"""One run's event files: follows the run's journal, and resumes where a daemon before us stopped, however it stopped.

What counts as exported is what stands in the event files. A checkpoint beside them (tensorboard.json) says how far they and
the journal were read together; after a crash the events behind the checkpoint are read back, and what they hold already is
passed over when the journal gives it again. So a kill at any instant loses nothing and writes nothing twice, without a
write-ahead copy of each batch.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from typing import TYPE_CHECKING

import msgspec

from gpuwatch.exporters import eventfile
from gpuwatch.exporters.eventfile import EventFile
from gpuwatch.exporters.run_events import RunEvents
from gpuwatch.exporters.written import Written
from gpuwatch.state import directories
from gpuwatch.state.journal_reader import JournalReader, Position
from gpuwatch.state.records import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuwatch.config import Config
    from gpuwatch.state.frames import Frame

_log = logging.getLogger(__name__)

CHECKPOINT_NAME = "tensorboard.json"
CHECKPOINT_NS = 10_000_000_000
RETRY_NS = 5_000_000_000
#: A batch ends after so many records of the journal, or so many bytes of them (one may be a picture of 16 MiB): this is
#: what a full disk keeps in memory of one run.
_BATCH_RECORDS = 256
_BATCH_BYTES = 1 << 20


class Checkpoint(msgspec.Struct):
    """Up to byte `offset` of event file `file`, and all files before it, everything up to `journal` and no more is written."""

    file: str
    offset: int
    journal: Position
    written: Written


class BusyError(Exception):
    """Another daemon is exporting this run."""


class RunExport:
    """Exports the run in the directory open as `directory_fd`, which it owns from now on.

    Raises BusyError when another process exports it, and OSError; then the descriptor stays the caller's.
    """

    def __init__(
        self, config: Config, directory_fd: int, gpu_readings: Callable[[int], list[tuple[str, float]]] = lambda _: []
    ) -> None:
        self.error = ""  # why the last write failed; "" while all is well
        self._directory_fd = directory_fd
        try:
            # Freed by the kernel with the descriptor: a daemon that was killed leaves no lock behind.
            fcntl.flock(directory_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError from None
        known = _recover(directory_fd)
        self._events = RunEvents(config.tensorboard, config.limits.tags_per_run, known.written, gpu_readings)
        self._journal = _open_journal(directory_fd, known.journal)
        self._safe = known.journal  # where a later daemon may start to read: no half-read step lies behind it
        self._checkpointed = known.journal
        for context in self._journal.context():
            self._observe(context)
        self._file: EventFile | None = None
        self._batch: list[bytes] = []
        self._retry_at_ns = 0
        self._checkpoint_due_ns = 0

    @property
    def needed_segment(self) -> int:
        """The journal's oldest segment that is still needed here."""
        return self._checkpointed.segment

    @property
    def left_out(self) -> int:
        """Points that had no place: see RunEvents."""
        return self._events.left_out

    @property
    def ended(self) -> bool:
        """The run's last event is in its file."""
        return self._events.written.ended and not self._batch

    def turn(self, now_ns: int) -> bool:
        """Export what the journal holds, up to one batch. True when there may be more at once.

        A write that fails sets `error`, and is tried again in a new file after RETRY_NS; meanwhile nothing more is read.
        """
        if self._batch and not self._write(now_ns):
            return False
        more = self._read_batch()
        if not more:
            self._put(self._events.flush(now_ns))
        return self._write(now_ns) and more

    def finish(self, reason: str, now_ns: int) -> None:
        """The run has ended for `reason` and its journal has been read: write what closes it."""
        if not self.ended:
            self._put(self._events.finish(reason))
            self._checkpoint_due_ns = 0
            self._write(now_ns)

    def close(self) -> None:
        """Leave a checkpoint, so that whoever goes on need not read anything back, and let go of everything."""
        self._checkpoint()
        self._close_file()
        self._journal.close()
        os.close(self._directory_fd)

    def _read_batch(self) -> bool:
        """Translate the journal's next records. False when there were no more."""
        read_bytes = 0
        for _ in range(_BATCH_RECORDS):
            entries = self._journal.read(1)
            if not entries:
                return False
            self._put(self._observe(entries[0].frame))
            if self._events.is_idle:
                self._safe = entries[0].position
            read_bytes += len(entries[0].frame.payload)
            if read_bytes >= _BATCH_BYTES:
                break
        return True

    def _observe(self, frame: Frame) -> list[bytes]:
        try:
            return self._events.observe(frame.decode())
        except DecodeError as error:
            _log.debug("tensorboard: a journal record is passed over: %s", error)
            return []

    def _put(self, events: list[bytes]) -> None:
        self._batch += map(eventfile.frame, events)

    def _write(self, now_ns: int) -> bool:
        """Append the batch to the event file. False when it could not be written, and waits."""
        if not self._batch:
            return True
        if self.error and now_ns < self._retry_at_ns:
            return False
        try:
            if self._file is None:
                self._file = EventFile(self._directory_fd)
            self._file.append(b"".join(self._batch))
        except OSError as error:
            # Behind a failed write nothing of this file is sure: the next attempt opens another one.
            self.error = error.strerror or str(error)
            self._retry_at_ns = now_ns + RETRY_NS
            self._close_file()
            return False
        self.error = ""
        self._batch.clear()
        if now_ns >= self._checkpoint_due_ns:
            self._checkpoint()
            self._checkpoint_due_ns = now_ns + CHECKPOINT_NS
        return True

    def _checkpoint(self) -> None:
        if self._file is None or self._batch:
            return
        checkpoint = Checkpoint(self._file.name, self._file.length_bytes, self._safe, self._events.written)
        with contextlib.suppress(OSError):  # an older one serves as well, only more slowly
            directories.replace_file(self._directory_fd, CHECKPOINT_NAME, msgspec.json.encode(checkpoint))
            self._checkpointed = self._safe

    def _close_file(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None


def is_exported(directory_fd: int) -> bool:
    """Whether the run in this directory has been exported to its end."""
    checkpoint = _read_checkpoint(directory_fd)
    return checkpoint is not None and checkpoint.written.ended


def _read_checkpoint(directory_fd: int) -> Checkpoint | None:
    try:
        return msgspec.json.decode(directories.read_file(directory_fd, CHECKPOINT_NAME), type=Checkpoint)
    except msgspec.MsgspecError:
        return None


def _recover(directory_fd: int) -> Checkpoint:
    """Where we stand: the checkpoint, and what the event files hold behind it."""
    names = eventfile.names(directory_fd)
    checkpoint = _read_checkpoint(directory_fd)
    if checkpoint is None or (checkpoint.file in names and _file_bytes(directory_fd, checkpoint.file) < checkpoint.offset):
        # None yet; or a power failure took the end of the file that it speaks of: then everything is read back.
        checkpoint = Checkpoint("", 0, Position(), Written())
    for name in names:
        if name < checkpoint.file:
            continue
        for event in eventfile.read(directory_fd, name, checkpoint.offset if name == checkpoint.file else 0):
            checkpoint.written.note(event)
    return checkpoint


def _file_bytes(directory_fd: int, name: str) -> int:
    return os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_size


def _open_journal(directory_fd: int, position: Position) -> JournalReader:
    fd = os.open("journal", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        return JournalReader(fd, position)
    finally:
        os.close(fd)
