"""The journal of one run: what it holds is acknowledged, and survives the daemon's death at any instant.

Segments NNNNNN.journal, a new one at each start and at 64 MiB, never appended to after a restart: a torn tail then costs
only itself. Each segment begins with what a reader needs to understand the rest (hello, names, facts), so that the oldest
may be deleted. A batch is one `os.write`; kill -9 keeps the page cache, so nothing is synced on the way: journal_sync.py does
that behind us, for the sake of power failures.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterable

from gpuwatch.state import frames

SEGMENT_BYTES = 64 << 20
#: All segments of one run together; the oldest go first.
JOURNAL_BYTES = 1 << 30
#: What waits in memory for a disk that refuses; beyond it records are refused, and so never acknowledged.
MAX_PENDING_BYTES = 8 << 20
RETRY_NS = 5_000_000_000
_SEGMENT = re.compile(r"(\d{6,9})\.journal", re.ASCII)


def segment_numbers(directory_fd: int) -> list[int]:
    """The segments of a journal directory, oldest first."""
    return sorted(int(match[1]) for name in os.listdir(directory_fd) if (match := _SEGMENT.fullmatch(name)))


def segment_name(number: int) -> str:
    return f"{number:06d}.journal"


class JournalWriter:
    """Appends to one journal directory. Not thread-safe, but for `sync`. Owns `directory_fd`.

    `preamble` gives the (ring id, monotonic ns, kind, payload) records that open each segment.
    """

    def __init__(
        self,
        directory_fd: int,
        preamble: Callable[[], Iterable[tuple[int, int, int, bytes]]] = tuple,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        journal_bytes: int = JOURNAL_BYTES,
    ) -> None:
        self.directory_fd = directory_fd
        self.durable_sequence: dict[int, int] = {}  # ring id -> last ring record that the journal holds
        self.durable_number: dict[int, int] = {}  # ring id -> last control message `n` that the journal holds
        self.errors: dict[str, int] = {}  # errno name -> failed writes
        self.refused_records = 0  # not taken since the disk failed for too long
        self.trimmed_bytes = 0  # deleted, oldest first, to keep under journal_bytes
        self.trimmed_unread_bytes = 0  # of these: what some reader had not passed yet
        self.written_bytes = 0
        self.paused = False  # the last write failed
        self.segment = max(segment_numbers(directory_fd), default=0)
        # The end of what an earlier daemon wrote: a checkpoint that is made before the first write of ours says where that is.
        self.offset = self._size(self.segment) if self.segment else 0
        self.passed: dict[str, int] = {}  # reader -> the segment it is in: older ones it no longer needs
        self._preamble = preamble
        self._segment_bytes = segment_bytes
        self._journal_bytes = journal_bytes
        self._sizes = {number: self._size(number) for number in segment_numbers(directory_fd)}
        self._fd = -1
        self._pending: list[tuple[int, int, bool, bytes]] = []  # ring id, sequence, is control, frame
        self._pending_bytes = 0
        self._retry_at_ns = 0

    def append(self, ring_id: int, sequence: int, monotonic_ns: int, kind: int, payload: bytes) -> bool:
        """Put a record into the batch. False when it was refused, because the disk has failed for too long."""
        frame = frames.encode(ring_id, sequence, monotonic_ns, kind, payload)
        if self._pending and self._pending_bytes + len(frame) > MAX_PENDING_BYTES and not self.flush(monotonic_ns):
            self.refused_records += 1
            return False
        self._pending.append((ring_id, sequence, kind >= frames.FIRST_CONTROL_KIND, frame))
        self._pending_bytes += len(frame)
        return True

    def flush(self, now_ns: int) -> bool:
        """Write the batch. True when nothing waits any more; a failure is counted, and tried again after RETRY_NS."""
        if not self._pending:
            return True
        if self.paused and now_ns < self._retry_at_ns:
            return False
        try:
            if self._fd < 0 or self.offset >= self._segment_bytes:
                self._open_segment()
            self._write_pending()
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "unknown")
            self.errors[name] = self.errors.get(name, 0) + 1
            self._fail(now_ns)
            return False
        if self._pending:  # a short write: the disk is full, and the segment ends in a torn frame
            self.errors["ENOSPC"] = self.errors.get("ENOSPC", 0) + 1
            self._fail(now_ns)
            return False
        self.paused = False
        return True

    @property
    def has_pending(self) -> bool:
        """Records wait for the disk."""
        return bool(self._pending)

    def mark_durable(self, ring_id: int, sequence: int, is_control: bool) -> None:
        """The journal holds this record: found by a reader after a restart, or just written."""
        if sequence:
            durable = self.durable_number if is_control else self.durable_sequence
            durable[ring_id] = max(sequence, durable.get(ring_id, 0))

    def segment_bytes(self, number: int) -> int:
        """The present size of a segment; 0 when there is none."""
        return self._sizes.get(number, 0)

    def sync(self) -> None:
        """Wait until what was written is on the disk. From a thread that may block; raises nothing."""
        with contextlib.suppress(OSError):
            fd = os.dup(self._fd)  # our own: the writer may close its descriptor meanwhile
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)

    def close(self, now_ns: int) -> None:
        """Flush, sync and close."""
        self.flush(now_ns)
        self.sync()
        self._close_segment()
        os.close(self.directory_fd)
        self.directory_fd = -1

    def _write_pending(self) -> None:
        data = b"".join(frame for _, _, _, frame in self._pending)
        written = os.write(self._fd, data)
        self.offset += written
        self.written_bytes += written
        self._sizes[self.segment] = self.offset
        done = 0
        for ring_id, sequence, is_control, frame in self._pending:
            if written < len(frame):
                break
            written -= len(frame)
            done += 1
            self.mark_durable(ring_id, sequence, is_control)
        self._pending_bytes -= sum(len(frame) for _, _, _, frame in self._pending[:done])
        del self._pending[:done]

    def _open_segment(self) -> None:
        self._close_segment()
        number = max([self.segment, *segment_numbers(self.directory_fd)]) + 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(segment_name(number), flags, 0o644, dir_fd=self.directory_fd)
        # From here the number is taken, whatever happens next: a reader must never see a segment change its mind.
        self.segment = number
        head = frames.SEGMENT_MAGIC + b"".join(
            frames.encode(ring, 0, ns, kind, body) for ring, ns, kind, body in self._preamble()
        )
        try:
            if os.write(fd, head) != len(head):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301  # a short write is one more failure
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):  # a disk that stays full would gather an empty segment at each attempt
                os.unlink(segment_name(number), dir_fd=self.directory_fd)
            raise
        self._fd, self.offset = fd, len(head)
        self.written_bytes += len(head)
        self._sizes[number] = len(head)
        self._trim()

    def _fail(self, now_ns: int) -> None:
        self._close_segment()
        self.paused = True
        self._retry_at_ns = now_ns + RETRY_NS

    def _close_segment(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _trim(self) -> None:
        """Keep under the cap: segments that every reader has passed, then, since a disk is finite, the oldest that are left."""
        passed = min(self.passed.values(), default=self.segment)
        for number in sorted(self._sizes)[:-1]:
            # A new segment may grow to its full size, so room for it is made now.
            if sum(self._sizes.values()) + self._segment_bytes <= self._journal_bytes:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(segment_name(number), dir_fd=self.directory_fd)
            size = self._sizes.pop(number)
            self.trimmed_bytes += size
            self.trimmed_unread_bytes += size if number >= passed else 0

    def _size(self, number: int) -> int:
        try:
            return os.stat(segment_name(number), dir_fd=self.directory_fd, follow_symlinks=False).st_size
        except OSError:
            return 0
