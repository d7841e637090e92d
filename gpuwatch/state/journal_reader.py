"""Reads a journal while it grows: every intact frame once, in order, past torn tails and damaged stretches."""

from __future__ import annotations

import errno
import os

import msgspec

from gpuwatch.state import frames
from gpuwatch.state.frames import Frame
from gpuwatch.state.journal import segment_name, segment_numbers

_PIECE_BYTES = 1 << 18
#: A segment that cannot be opened for one of these reasons is none: a planted link, a directory, deleted, not for us.
_NEVER = {errno.ELOOP, errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENXIO}


class Position(msgspec.Struct, frozen=True, order=True):
    """A place between two frames: `offset` bytes into segment `segment`."""

    segment: int = 0
    offset: int = 0


class Entry(msgspec.Struct, frozen=True):
    """A frame, and the position after it: who has dealt with the frame resumes from there."""

    position: Position
    frame: Frame


class JournalReader:
    """A cursor over the segments of `directory` (a path, or a descriptor, which is duplicated). Never raises on what it reads.

    A segment's damaged or torn rest is given up only when a later segment exists: until then it may still be being written.
    """

    def __init__(self, directory: str | os.PathLike[str] | int, position: Position = Position()) -> None:  # noqa: B008  # frozen
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self._directory_fd = os.dup(directory) if isinstance(directory, int) else os.open(directory, flags)
        self.position = position
        self.skipped_bytes = 0  # damaged or torn, and so given up
        self.missed_segments = 0  # deleted before they were read
        self._fd = -1
        self._segment = 0  # the one that _fd is open on
        self._buffer = b""
        self._buffer_offset = 0  # where in the segment the buffer begins
        self._seen: dict[tuple[int, bool], int] = {}  # (ring id, is control) -> last sequence given out

    def read(self, limit: int = 1000) -> list[Entry]:
        """Up to `limit` further entries; fewer when there are no more for now."""
        found: list[Entry] = []
        while len(found) < limit:
            frame = self._next()
            if frame is None:
                break
            if self._is_new(frame):
                found.append(Entry(self.position, frame))
        return found

    def context(self) -> list[Frame]:
        """For a reader that resumes inside a segment: its hello, names and facts before the position, in order."""
        target = self.position
        if not target.offset:
            return []
        kept = []
        self.position = Position(target.segment, 0)
        while self.position < target:
            frame = self._next(only_segment=target.segment)
            if frame is None or self.position.segment != target.segment:
                break
            self._is_new(frame)
            if frame.kind in {frames.KIND_HELLO, frames.KIND_NAMES, frames.KIND_META}:
                kept.append(frame)
        self.position = target
        return kept

    def behind_bytes(self) -> int:
        """Bytes of the journal after the position."""
        behind = 0
        for number in self._numbers():
            if number >= self.position.segment:
                behind += self._file_bytes(number) - (self.position.offset if number == self.position.segment else 0)
        return max(0, behind)

    def close(self) -> None:
        self._close_segment()
        if self._directory_fd >= 0:
            os.close(self._directory_fd)
        self._directory_fd = -1

    def _is_new(self, frame: Frame) -> bool:
        # An I/O error may hide from the writer that a frame did reach the disk, and so it is written again.
        if not frame.sequence:
            return True
        key = (frame.ring_id, frame.is_control)
        if frame.sequence <= self._seen.get(key, 0):
            return False
        self._seen[key] = frame.sequence
        return True

    def _next(self, only_segment: int = 0) -> Frame | None:
        while True:
            if (self._fd < 0 or self._segment != self.position.segment) and not self._open_segment():
                return None
            frame = self._frame()
            if frame is not None or only_segment:
                return frame
            later = next((n for n in self._numbers() if n > self.position.segment), 0)
            if not later:
                return None
            # Nobody writes to this segment any more; but it may have grown between our look at it and at the directory.
            self._buffer = b""
            frame = self._frame()
            if frame is not None:
                return frame
            self.skipped_bytes += max(0, self._file_bytes(self.position.segment) - self.position.offset)
            self.missed_segments += later - self.position.segment - 1
            self.position = Position(later, 0)

    def _open_segment(self) -> bool:
        """Open the first segment, from the position on, that can be opened; False when there is none (yet)."""
        self._close_segment()
        for number in self._numbers():
            if number < self.position.segment:
                continue
            try:
                self._fd = os.open(segment_name(number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory_fd)
            except OSError as error:
                if error.errno in _NEVER:
                    continue
                return False  # out of descriptors or memory: it may be ours to read a moment later
            if number > self.position.segment:
                self.missed_segments += number - self.position.segment if self.position.segment else 0
                self.position = Position(number, 0)
            self._segment, self._buffer = number, b""
            return True
        return False

    def _frame(self) -> Frame | None:
        """The frame at the position, if it is whole and sound; moves past it."""
        if self.position.offset == 0:
            if (
                not self._fill(0, len(frames.SEGMENT_MAGIC))
                or self._buffer[: len(frames.SEGMENT_MAGIC)] != frames.SEGMENT_MAGIC
            ):
                self._buffer = b""
                return None
            self.position = Position(self._segment, len(frames.SEGMENT_MAGIC))
        offset = self.position.offset
        if not self._fill(offset, frames.FRAME_HEAD.size):
            return None
        size = frames.whole_frame_bytes(self._buffer, offset - self._buffer_offset)
        if not size or not self._fill(offset, size):
            return None
        frame = frames.parse(self._buffer, offset - self._buffer_offset, size)
        if frame is None:
            self._buffer = b""
            return None
        self.position = Position(self._segment, offset + size)
        return frame

    def _fill(self, offset: int, size: int) -> bool:
        """Make the buffer hold `size` bytes from `offset` of the segment; False when the file does not (yet)."""
        start = self._buffer_offset
        if start <= offset and offset + size <= start + len(self._buffer):
            return True
        try:
            self._buffer = os.pread(self._fd, max(size, _PIECE_BYTES), offset)
        except OSError:
            self._buffer = b""
        self._buffer_offset = offset
        return len(self._buffer) >= size

    def _close_segment(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _numbers(self) -> list[int]:
        try:
            return segment_numbers(self._directory_fd)
        except OSError:
            return []

    def _file_bytes(self, number: int) -> int:
        try:
            return os.stat(segment_name(number), dir_fd=self._directory_fd, follow_symlinks=False).st_size
        except OSError:
            return 0
