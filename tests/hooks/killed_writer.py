"""Kill a writing child at random instants, many times, and judge what it left in the ring; prints "accepted lying" counts.

A program of its own, because forking a test process that has torch loaded takes thirty times as long.
usage: killed_writer.py safe|unsafe checked|unchecked TIMES
"""

import os
import random
import signal
import struct
import sys
import time

from gpuwatch_hooks import wire
from gpuwatch_hooks.ring import RingWriter
from ring_reader import RingReader


def _unsafe_write(self, kind, head, body=b""):
    """The protection off: announced first, then written bit by bit."""
    sequence = self.sequence + 1
    base = wire.RING_HEADER_BYTES + (sequence - 1) % self.slot_count * self.slot_bytes
    self._words[base >> 3] = sequence
    self._words[wire.HEAD_WORD] = sequence
    now = time.monotonic_ns()
    crc = wire.slot_crc(sequence, now, kind, head)
    start = base + wire.SLOT_HEADER_BYTES
    self._view[base + 8 : start] = wire.SLOT_META.pack(now, len(head), crc, kind, 0, 0)
    for at in range(start, start + len(head), 8):
        self._view[at : at + 8] = head[at - start : at - start + 8]
    self.sequence = sequence


def _payload(number):
    return number.to_bytes(8, "little") * (1 + number * 7 % 100)  # every byte tells which record it belongs to


def _write_until_killed(ring, write, begun):
    ring.sequence = random.randrange(1 << 40)  # so that what an earlier child left cannot pass for ours
    os.write(begun, b"x")
    while True:
        number = ring.sequence + 1
        write(ring, 1 + number % 5, _payload(number))


def _unchecked(reader, index):
    base = reader.header_bytes + index * reader.slot_bytes
    raw = bytes(reader._map[base : base + reader.slot_bytes])
    (sequence,) = struct.unpack_from("<Q", raw)
    now, size, _, kind, _, _ = wire.SLOT_META.unpack_from(raw, 8)
    return (sequence, kind, raw[wire.SLOT_HEADER_BYTES : wire.SLOT_HEADER_BYTES + size], now) if sequence else "empty"


def _kill_at_random(write, times, read_slot):
    """Kill a writing child `times` times at random instants; (records accepted, those of them that lie)."""
    rng = random.Random(1)
    ring = RingWriter(16, 1024)
    reader = RingReader(ring.fd)
    accepted = lying = 0
    for _ in range(times):
        wait, begun = os.pipe()
        child = os.fork()
        if child == 0:
            _write_until_killed(ring, write, begun)
        os.read(wait, 1)
        time.sleep(rng.random() * 0.003)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(wait)
        os.close(begun)
        for index in range(reader.slots):
            record = read_slot(reader, index)
            if isinstance(record, tuple):
                sequence, kind, payload, _ = record
                accepted += 1
                lying += not (payload == _payload(sequence) and kind == 1 + sequence % 5)
    reader.close()
    ring.close()
    return accepted, lying


if __name__ == "__main__":
    writers = {"safe": RingWriter.write, "unsafe": _unsafe_write}
    readers = {"checked": RingReader.slot, "unchecked": _unchecked}
    print(*_kill_at_random(writers[sys.argv[1]], int(sys.argv[3]), readers[sys.argv[2]]))
