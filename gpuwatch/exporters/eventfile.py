"""TensorBoard's event files: the framing of their records, and one file that we append to.

A record is: length (u64), masked CRC-32C of those eight bytes (u32), the payload, masked CRC-32C of the payload (u32), all
little-endian. The payload is a serialized `Event`.

Every start of the daemon opens a file of its own, because readers never look at what follows a torn record, and because
TensorBoard's Python loader moves to the next file *by name* and never comes back: so a new file's name must sort after the
old ones even when the clock has been set back.
"""

from __future__ import annotations

import os
import re
import struct
import time
from collections.abc import Iterable, Iterator

import google_crc32c
from tensorboard.compat.proto.event_pb2 import Event, SourceMetadata

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_OURS = re.compile(r"events\.out\.tfevents\.(\d{10})\.(\d{6})\.gpuwatch", re.ASCII)
_OTHERS = re.compile(r"events\.out\.tfevents\.(\d{10})\..*", re.ASCII)
_CRC_MASK_DELTA = 0xA282EAD8
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def masked_crc(data: bytes) -> int:
    """The CRC-32C of `data`, rotated and offset, so that a checksum of data that holds checksums stays a good one."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _CRC_MASK_DELTA) & 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
    """One record of an event file."""
    length = _LENGTH.pack(len(payload))
    return b"".join((length, _CRC.pack(masked_crc(length)), payload, _CRC.pack(masked_crc(payload))))


class EventFile:
    """One event file in the directory open as `directory_fd`, created now; `name` is its name there.

    Raises OSError from every method. After an error the file's end is unknown: `cut` it back, or give it up.
    """

    def __init__(self, directory_fd: int, wall_ns: int | None = None) -> None:
        wall_seconds = (time.time_ns() if wall_ns is None else wall_ns) / 1e9
        self.name = next_name(os.listdir(directory_fd), int(wall_seconds))
        self._fd = os.open(self.name, _CREATE, 0o644, dir_fd=directory_fd)
        self.length_bytes = 0
        head = Event(wall_time=wall_seconds, file_version="brain.Event:2", source_metadata=SourceMetadata(writer="gpuwatch"))
        try:
            self.append(frame(head.SerializeToString()))
        except OSError:
            self.close()
            os.unlink(self.name, dir_fd=directory_fd)
            raise

    def append(self, records: bytes) -> None:
        """Write all of `records` (framed). A partial write, as a full disk leaves it, is cut off again before the OSError."""
        view = memoryview(records)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            self.cut(self.length_bytes)
            raise
        self.length_bytes += len(records)

    def cut(self, length_bytes: int) -> None:
        """Take back what was written behind `length_bytes`."""
        os.ftruncate(self._fd, length_bytes)
        os.lseek(self._fd, length_bytes, os.SEEK_SET)
        self.length_bytes = length_bytes

    def close(self) -> None:
        os.close(self._fd)


def read(directory_fd: int, name: str, offset_bytes: int = 0) -> Iterator[Event]:
    """The events of a file from the record at `offset_bytes` on, up to its end or to the first record that is torn or damaged.

    Raises OSError when the file cannot be opened.
    """
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(fd).st_size
        file.seek(offset_bytes)
        while len(head := file.read(_LENGTH.size + _CRC.size)) == _LENGTH.size + _CRC.size:
            (length,) = _LENGTH.unpack_from(head)
            if head[_LENGTH.size :] != _CRC.pack(masked_crc(head[: _LENGTH.size])) or length > size:
                return
            payload = file.read(length)
            if file.read(_CRC.size) != _CRC.pack(masked_crc(payload)):
                return
            yield Event.FromString(payload)


def names(directory_fd: int) -> list[str]:
    """The event files in a directory that this exporter wrote, oldest first."""
    return sorted(name for name in os.listdir(directory_fd) if _OURS.fullmatch(name))


def next_name(names: Iterable[str], wall_seconds: int) -> str:
    """A name that sorts behind every event file among `names`; it carries the time, but no host name and no pid."""
    seconds, number = wall_seconds, 0
    for name in names:
        if ours := _OURS.fullmatch(name):
            seconds, number = max((seconds, number), (int(ours[1]), int(ours[2]) + 1))
        elif other := _OTHERS.fullmatch(name):
            seconds, number = max((seconds, number), (int(other[1]) + 1, 0))
    return f"events.out.tfevents.{seconds:010d}.{number:06d}.gpuwatch"
