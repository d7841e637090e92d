"""A reader of the ring written from wire.py alone, for the tests of the writer: slow, plain and suspicious."""

import mmap
import os
import struct

from gpuwatch_hooks import wire


class RingReader:
    """Reads the ring behind `fd`, copying each slot before it believes anything in it."""

    def __init__(self, fd):
        size = os.fstat(fd).st_size
        self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        magic, self.wire, self.slots, self.slot_bytes, self.header_bytes, self.ring_id = wire.RING_HEADER.unpack_from(self._map)
        assert magic == wire.RING_MAGIC
        assert size == self.header_bytes + self.slots * self.slot_bytes

    def _word(self, index):
        return struct.unpack_from("<Q", self._map, 8 * index)[0]

    def head(self):
        return self._word(wire.HEAD_WORD)

    def drops(self):
        return {reason: self._word(wire.DROPS_WORD + i) for i, reason in enumerate(wire.DROP_REASONS)}

    def slot(self, index):
        """(sequence, kind, payload, monotonic_ns) of one slot, or the name of what is wrong with it."""
        base = self.header_bytes + index * self.slot_bytes
        raw = bytes(self._map[base : base + self.slot_bytes])
        (sequence,) = struct.unpack_from("<Q", raw)
        if sequence == 0:
            return "empty"
        now, size, crc, kind, _flags, _reserved = wire.SLOT_META.unpack_from(raw, 8)
        if size > self.slot_bytes - wire.SLOT_HEADER_BYTES:
            return "torn"
        payload = raw[wire.SLOT_HEADER_BYTES : wire.SLOT_HEADER_BYTES + size]
        if wire.slot_crc(sequence, now, kind, payload) != crc:
            return "torn"
        return sequence, kind, payload, now

    def since(self, position):
        """Records after sequence `position`, oldest first, and how many were overwritten before they could be read."""
        head = self.head()
        first = max(position + 1, head - self.slots + 1)
        records = [self.slot((sequence - 1) % self.slots) for sequence in range(first, head + 1)]
        intact = [(s, r) for s, r in zip(range(first, head + 1), records, strict=True) if isinstance(r, tuple) and r[0] == s]
        return [record for _, record in intact], head - position - len(intact)

    def close(self):
        self._map.close()
