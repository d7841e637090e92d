"""H3 as a test: writing a record never gives up Python's lock, so that a busy thread cannot stretch it.

Times on a shared machine are noise; what is compared is the share of writes during which another thread ran, with and without
the protection. tests/bench has the microseconds.
"""

import sys
import threading
import time
import zlib

import pytest
from gpuwatch_hooks import wire
from gpuwatch_hooks.ring import RingWriter

#: So long that whoever lets go of the lock while adding it up (10 ms) finds that the other thread has had a turn.
LONG = bytes(30_000_000)


@pytest.fixture
def ring():
    ring = RingWriter(64, 16384)
    yield ring
    ring.close()


def _interrupted(call, times):
    """In how many of `times` calls another, busy Python thread got a turn."""
    turns, ends = [0], []

    def busy():
        while not ends:
            turns[0] += 1

    thread = threading.Thread(target=busy)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.2)  # nobody is made to let go: only who lets go by itself is interrupted
    interrupted = 0
    thread.start()
    try:
        for _ in range(times):
            before = turns[0]
            call()
            interrupted += turns[0] != before
    finally:
        ends.append(True)
        sys.setswitchinterval(interval)
        thread.join()
    return interrupted


def test_a_write_never_lets_another_thread_in(ring):
    payload = bytes(12_000)
    assert _interrupted(lambda: ring.write(wire.KIND_TENSORS, b"head", payload), 1000) <= 2  # the interval may end in one
    assert _interrupted(lambda: wire.slot_crc(1, 2, 3, LONG), 10) <= 2


def test_twin_a_checksum_in_one_piece_lets_go(ring):
    assert _interrupted(lambda: zlib.crc32(LONG), 10) >= 5


def test_the_pieces_add_up_to_one_checksum():
    payload = bytes(range(256)) * 61
    whole = zlib.crc32(payload, zlib.crc32((7).to_bytes(8, "little") + (9).to_bytes(8, "little") + (2).to_bytes(2, "little")))
    assert wire.slot_crc(7, 9, 2, payload) == wire.slot_crc(7, 9, 2, memoryview(payload)) == whole


def test_a_write_costs_tens_of_microseconds_and_no_memory(ring):
    """The bound is wide on purpose: it catches a copy element by element or a system call, not a slow machine."""
    payload = bytes(150 * 8 * 4)
    for _ in range(200):
        ring.write(wire.KIND_TENSORS, b"head", payload)
    took = []
    for _ in range(1000):
        began = time.perf_counter_ns()
        ring.write(wire.KIND_TENSORS, b"head", payload)
        took.append(time.perf_counter_ns() - began)
    assert sorted(took)[500] < 200_000
