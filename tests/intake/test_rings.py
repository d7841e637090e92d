"""The ring's reading end against its real writer: every record once, every loss counted, nothing torn taken for whole."""

import os
import signal
import struct
import subprocess
import sys
import time
import zlib

import pytest
from gpuwatch_hooks import wire
from gpuwatch_hooks.ring import RingWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuwatch.intake.descriptors import DescriptorError
from gpuwatch.intake.rings import RingReader

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def open_reader(ring):
    return RingReader(os.dup(ring.fd), ring.slot_count, ring.slot_bytes, ring.ring_id)


def self_checking(number, size=600):
    """A payload that proves by itself that it is whole: its number, filler, and a checksum of both."""
    body = struct.pack("<Q", number) + bytes([number % 251]) * size
    return body + struct.pack("<I", zlib.adler32(body))


def is_whole(payload):
    return struct.unpack("<I", payload[-4:])[0] == zlib.adler32(payload[:-4])


@pytest.fixture
def ring():
    ring = RingWriter(16, 1024)
    yield ring
    ring.close()


@pytest.fixture
def reader(ring):
    reader = open_reader(ring)
    yield reader
    reader.close()


def test_records_come_back_as_they_were_written(ring, reader):
    before = time.monotonic_ns()
    ring.write(3, b"head", b"body")
    ring.write(4, b"", b"")
    first, second = reader.read()
    assert (first.sequence, first.kind, first.payload) == (1, 3, b"headbody")
    assert (second.sequence, second.kind, second.payload) == (2, 4, b"")
    assert before <= first.monotonic_ns <= second.monotonic_ns
    assert reader.read() == []


def test_a_record_that_fills_its_slot(ring, reader):
    ring.write(1, bytes(1024 - wire.SLOT_HEADER_BYTES))
    assert len(reader.read()[0].payload) == 1024 - wire.SLOT_HEADER_BYTES


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=30), st.integers(1, 9))
def test_reader_agrees_with_a_model_of_the_ring(turns, slots):
    """Writes and reads in any order: what is delivered and what is counted lost is what a list would say."""
    ring = RingWriter(slots, 256)
    reader = open_reader(ring)
    written, read, lost = 0, 0, 0
    try:
        for writes, reads in turns:
            for _ in range(writes):
                written += 1
                ring.write(1, struct.pack("<Q", written))
            records = reader.read(reads)
            if reads and written > read:
                skipped = max(0, written - slots - read)
                lost += skipped
                read += skipped
            expected = list(range(read + 1, min(written, read + reads) + 1))
            read += len(expected)
            assert [struct.unpack("<Q", record.payload)[0] for record in records] == expected
            assert [record.sequence for record in records] == expected
            assert (reader.overwritten, reader.damaged) == (lost, 0)
    finally:
        reader.close()
        ring.close()


def test_reading_on_behind_what_is_acknowledged(ring, reader):
    for number in range(10):
        ring.write(1, bytes([number]))
    reader.seek(7)
    assert [record.sequence for record in reader.read()] == [8, 9, 10]
    assert reader.overwritten == 0


def flip_each_bit_of_a_slot(ring, reader):
    """For each bit of the slot: was the record taken with another content?"""
    accepted_wrong = 0
    payload = self_checking(5, 40)
    slot = wire.RING_HEADER_BYTES
    used_bytes = wire.SLOT_HEADER_BYTES + len(payload)
    for bit in range(8 * used_bytes):
        ring.sequence = 0
        ring.write(1, payload)
        ring._view[slot + bit // 8] ^= 1 << bit % 8
        reader.seek(0)
        records = reader.read()
        # flags and reserved (bytes 28..31) mean nothing yet, and are not part of the checksum
        accepted_wrong += bool(records) and (records[0].payload != payload or records[0].kind != 1)
    return accepted_wrong


def test_no_flipped_bit_is_taken_for_a_record(ring, reader):
    assert flip_each_bit_of_a_slot(ring, reader) == 0
    assert reader.damaged > 8 * 40


def test_without_the_checksum_flipped_bits_would_be_taken(ring, reader, monkeypatch):
    class NoChecksum(int):
        __eq__ = lambda self, other: True  # noqa: E731
        __ne__ = lambda self, other: False  # noqa: E731
        __hash__ = int.__hash__

    monkeypatch.setattr(wire, "slot_crc", lambda *_: NoChecksum(0))
    assert flip_each_bit_of_a_slot(ring, reader) > 0


def test_one_damaged_record_costs_only_itself(ring, reader):
    for number in range(1, 6):
        ring.write(1, self_checking(number))
    ring._view[wire.RING_HEADER_BYTES + 2 * ring.slot_bytes + 50] ^= 0xFF
    assert [record.sequence for record in reader.read()] == [1, 2, 4, 5]
    assert (reader.overwritten, reader.damaged) == (0, 1)


def test_a_record_that_is_being_written_is_not_taken(ring, reader):
    ring.write(1, b"one")
    ring._view[wire.RING_HEADER_BYTES : wire.RING_HEADER_BYTES + 8] = bytes(8)
    assert reader.read() == []
    assert reader.damaged == 1


def test_the_oldest_slot_while_the_writer_comes_round_to_it_counts_as_overwritten(ring, reader):
    """The writer died having invalidated a slot for record 17: record 1 is lost, and nothing is damaged."""
    for number in range(1, 17):
        ring.write(1, self_checking(number))
    ring._view[wire.RING_HEADER_BYTES : wire.RING_HEADER_BYTES + 8] = bytes(8)
    assert [record.sequence for record in reader.read()] == list(range(2, 17))
    assert (reader.overwritten, reader.damaged) == (1, 0)


@pytest.mark.parametrize("head", [0, 3, 1 << 20, 1 << 39])
def test_a_head_that_lies_ends_the_read_and_never_the_reader(ring, reader, head):
    for number in range(1, 6):
        ring.write(1, self_checking(number))
    reader.read()
    ring._words[wire.HEAD_WORD] = head
    for _ in range(3):
        assert all(is_whole(record.payload) for record in reader.read())
    assert reader.overwritten <= head


@pytest.mark.parametrize("head", [(1 << 40) + 1, (1 << 64) - 1])
def test_a_head_that_cannot_be_is_refused_before_it_gets_into_a_counter(ring, reader, head):
    ring._words[wire.HEAD_WORD] = head
    with pytest.raises(DescriptorError, match="head"):
        reader.read()
    assert reader.overwritten == 0


def test_slot_header_that_claims_more_than_a_slot(ring, reader):
    ring.write(1, b"x")
    start = wire.RING_HEADER_BYTES + 8
    ring._view[start : start + wire.SLOT_META.size] = wire.SLOT_META.pack(1, 1 << 31, 0, 1, 0, 0)
    assert reader.read() == []
    assert reader.damaged == 1


def test_a_turn_is_bounded_by_records_and_by_bytes():
    ring = RingWriter(64, 4096)
    reader = open_reader(ring)
    for _ in range(64):
        ring.write(1, bytes(4000))
    assert len(reader.read(max_slots=10)) == 10
    assert len(reader.read(max_bytes=12_000)) == 3
    assert reader.waiting == 51
    reader.close()
    ring.close()


def test_the_hooks_drop_counters(ring, reader):
    ring.count_dropped("too_large", 2)
    ring.count_dropped("probe_fault")
    assert reader.drops() == {"too_large": 2, "busy_writer": 0, "not_ready": 0, "probe_fault": 1}


def test_close_leaves_no_descriptor(ring):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        open_reader(ring).close()
    assert len(os.listdir("/proc/self/fd")) == before


WRITER = """
import os, socket, sys
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/hooks"]
from gpuwatch_hooks.ring import RingWriter
from tests.intake.test_rings import self_checking
ring = RingWriter(32, 1024)
with socket.socket(fileno=int(sys.argv[1])) as there:
    socket.send_fds(there, [ring.ring_id.to_bytes(8, "little")], [ring.fd])
number, last = 0, int(sys.argv[3])
while number != last:
    number += 1
    ring.write(1, self_checking(number))
"""


def start_writer(records):
    """A process that writes `records` self-checking records (0: for ever) as fast as it can; and its ring, read from here."""
    import socket

    here, there = socket.socketpair()
    command = [sys.executable, "-c", WRITER, str(there.fileno()), ROOT, str(records or -1)]
    process = subprocess.Popen(command, pass_fds=[there.fileno()])
    there.close()
    here.settimeout(30)
    data, fds, _, _ = socket.recv_fds(here, 8, 1)
    here.close()
    return process, RingReader(fds[0], 32, 1024, int.from_bytes(data, "little"))


def test_beside_a_writer_at_full_speed_nothing_torn_is_taken_and_every_record_is_accounted_for():
    process, reader = start_writer(40_000)
    try:
        taken = []
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (process.poll() is None or reader.waiting > 0):
            records = reader.read(max_slots=7)
            assert all(is_whole(record.payload) for record in records)
            taken += [record.sequence for record in records]
        assert reader.head == 40_000
        assert len(taken) + reader.overwritten == 40_000
        assert reader.damaged == 0
        assert taken == sorted(set(taken))
        assert reader.overwritten > 0, "the writer never lapped the reader: this tested nothing"
    finally:
        process.kill()
        process.wait(10)
        reader.close()


def test_what_a_killed_writer_leaves_is_whole():
    """Killed at random instants, in mid-write too: what its ring still says is true."""
    whole = 0
    for attempt in range(12):
        process, reader = start_writer(0)
        try:
            time.sleep(0.002 + 0.0011 * attempt)
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            reader.seek(max(0, reader.head - 40))
            records = []
            while batch := reader.read():
                records += batch
            assert all(is_whole(record.payload) for record in records)
            assert reader.damaged == 0
            assert len(records) in {31, 32} or reader.head < 32
            whole += len(records)
        finally:
            process.kill()
            process.wait(10)
            reader.close()
    assert whole > 150
