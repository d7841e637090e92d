"""The reading end of a ring: every sequence number ends up exactly once as a record, as overwritten, or as damaged.

The slots are copied by preadv and never mapped: that cannot fault, whatever the writer does to its file, and it keeps each
rank's 8 MiB out of the daemon's own memory (a mapping would count half of them). Many slots a call, because each call may
give up the GIL: beside three busy threads the slowest pass took 1,284 us a slot with three calls for each, 232 us so. Only
the header page is mapped, since its head and its counters must be read as whole words.
"""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

from gpuwatch_hooks import wire

from gpuwatch.intake.descriptors import DescriptorError, check_memfd

#: Records read of one ring before the others have their turn.
BATCH_SLOTS = 256
BATCH_BYTES = 4 << 20
#: Copied by one call, unless a single slot is larger. What a look at a calm ring takes then stays in the cache and small.
PIECE_BYTES = 128 << 10
#: No writer gets this far ahead: a million records a second for twelve days. A head that says so is not one.
MAX_LEAP = 1 << 40


class RawRecord(NamedTuple):
    """One slot as published: its number, CLOCK_MONOTONIC ns of the write, wire kind and payload, CRC already checked."""

    sequence: int
    monotonic_ns: int
    kind: int
    payload: bytes


class RingReader:
    """Reads one ring from the record after `acknowledged`. Takes the descriptor over, also when the constructor raises.

    `overwritten` and `damaged` count records since this reader began. Raises DescriptorError for a ring that cannot be
    trusted or whose header contradicts `slot_count`, `slot_bytes`, `ring_id`, as the hello claimed them.
    """

    _piece = memoryview(b"")  # what was copied last; shared by all readers, which take turns on one thread

    def __init__(self, fd: int, slot_count: int, slot_bytes: int, ring_id: int, max_bytes: int = wire.MAX_RING_BYTES) -> None:
        self.fd = fd
        try:
            self._map = _map_header(fd, slot_count, slot_bytes, ring_id, max_bytes)
        except BaseException:
            os.close(fd)
            raise
        self._header = memoryview(self._map)
        self._words = self._header.cast("Q")
        self.slot_count = slot_count
        self.slot_bytes = slot_bytes
        self.ring_id = ring_id
        self.sequence = 0  # the last number dealt with
        self.overwritten = 0
        self.damaged = 0

    def seek(self, acknowledged: int) -> None:
        """Go on after record number `acknowledged`, which the journal has."""
        self.sequence = acknowledged

    @property
    def head(self) -> int:
        """The number of the last published record, as the writer says."""
        return self._words[wire.HEAD_WORD]

    @property
    def waiting(self) -> int:
        """Published records that were not dealt with yet; negative when the writer's head went backwards."""
        return self._words[wire.HEAD_WORD] - self.sequence

    def drops(self) -> dict[str, int]:
        """What the hooks themselves lost, by reason."""
        return {reason: self._words[wire.DROPS_WORD + i] for i, reason in enumerate(wire.DROP_REASONS)}

    def read(self, max_slots: int = BATCH_SLOTS, max_bytes: int = BATCH_BYTES) -> list[RawRecord]:
        """The next records, oldest first, within the given budget; [] when there is nothing new.

        Raises DescriptorError when the head cannot be one.
        """
        records: list[RawRecord] = []
        slots_left, bytes_left = max_slots, max_bytes
        while slots_left > 0 and bytes_left > 0:
            head = self.head
            if head <= self.sequence:
                break
            if head - self.sequence > MAX_LEAP:
                raise DescriptorError(f"a ring whose head is {head}")
            # The slot of `oldest` may be half-way to record head + 1 already: the checks below tell.
            oldest = head - self.slot_count + 1
            if oldest > self.sequence + 1:
                self.overwritten += oldest - 1 - self.sequence
                self.sequence = oldest - 1
            index = self.sequence % self.slot_count
            count = min(head - self.sequence, self.slot_count - index, slots_left, bytes_left // self.slot_bytes + 1)
            piece = self._copy(index, min(count, max(1, PIECE_BYTES // self.slot_bytes)))
            for start in range(0, len(piece), self.slot_bytes):
                record = self._parse(piece[start : start + self.slot_bytes])
                self.sequence += 1
                slots_left -= 1
                if record is not None:
                    records.append(record)
                    bytes_left -= len(record.payload)
                elif self.head - self.sequence >= self.slot_count - 1:
                    self.overwritten += 1  # or being overwritten now: the writer has come round to this slot
                else:
                    self.damaged += 1
        return records

    def _copy(self, index: int, count: int) -> memoryview:
        """`count` slots from slot `index` on, as they were at one moment or another of the call."""
        size_bytes = count * self.slot_bytes
        if len(self._piece) < size_bytes:
            RingReader._piece = memoryview(bytearray(max(size_bytes, PIECE_BYTES)))
        piece = self._piece[:size_bytes]
        done = os.preadv(self.fd, [piece], wire.RING_HEADER_BYTES + index * self.slot_bytes)
        piece[done:] = bytes(size_bytes - done)
        return piece

    def _parse(self, slot: memoryview) -> RawRecord | None:
        """The record after `sequence`, or None where its slot holds something else or does not match its own checksum."""
        if int.from_bytes(slot[:8], "little") != self.sequence + 1:
            return None
        monotonic_ns, size, crc, kind, _flags, _reserved = wire.SLOT_META.unpack_from(slot, 8)
        if size > self.slot_bytes - wire.SLOT_HEADER_BYTES:
            return None
        payload = bytes(slot[wire.SLOT_HEADER_BYTES : wire.SLOT_HEADER_BYTES + size])
        # The checksum covers the sequence number and the time too: a copy half of one record, half of the next has none.
        if wire.slot_crc(self.sequence + 1, monotonic_ns, kind, payload) != crc:
            return None
        return RawRecord(self.sequence + 1, monotonic_ns, kind, payload)

    def close(self) -> None:
        if self.fd >= 0:
            self._words.release()
            self._header.release()
            self._map.close()
            os.close(self.fd)
            self.fd = -1


def _map_header(fd: int, slot_count: int, slot_bytes: int, ring_id: int, max_bytes: int) -> mmap.mmap:
    size_bytes = check_memfd(fd, max_bytes)
    if (
        not 1 <= slot_count <= wire.MAX_SLOTS
        or not wire.SLOT_HEADER_BYTES < slot_bytes <= wire.MAX_SLOT_BYTES
        or slot_bytes % 8
    ):
        raise DescriptorError(f"a ring of {slot_count} slots of {slot_bytes} bytes")
    if size_bytes != wire.RING_HEADER_BYTES + slot_count * slot_bytes:
        raise DescriptorError(f"{size_bytes} bytes for {slot_count} slots of {slot_bytes}")
    try:
        header = mmap.mmap(fd, wire.RING_HEADER_BYTES, prot=mmap.PROT_READ)
    except OSError as error:
        raise DescriptorError(f"cannot be mapped ({error.strerror})") from None
    said = wire.RING_HEADER.unpack_from(header)
    if said != (wire.RING_MAGIC, wire.WIRE_VERSION, slot_count, slot_bytes, wire.RING_HEADER_BYTES, ring_id):
        header.close()
        raise DescriptorError("its header contradicts the hello")
    return header
