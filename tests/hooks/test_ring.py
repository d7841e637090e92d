"""The ring against a model, under random kills, and without each of its protections."""

import fcntl
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import gpuwatch_hooks
import pytest
from gpuwatch_hooks import wire
from gpuwatch_hooks.ring import RingWriter
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.hooks.ring_reader import RingReader

KILLS = Path(__file__).with_name("killed_writer.py")


@pytest.fixture
def ring():
    ring = RingWriter(8, 256)
    yield ring
    ring.close()


class RingModel(RuleBasedStateMachine):
    """Writer and reader against the simplest thing that could be true: the last N records, and counters."""

    @initialize(slots=st.integers(1, 9), words=st.integers(6, 40))
    def begin(self, slots, words):
        self.writer = RingWriter(slots, 8 * words)
        self.reader = RingReader(self.writer.fd)
        self.slots, self.limit = slots, 8 * words - wire.SLOT_HEADER_BYTES
        self.written, self.read, self.overwritten, self.too_large = [], 0, 0, 0

    @rule(kind=st.integers(1, 5), head=st.binary(max_size=200), body=st.binary(max_size=200))
    def write(self, kind, head, body):
        fits = len(head) + len(body) <= self.limit
        assert self.writer.write(kind, bytearray(head), memoryview(body)) is fits
        if fits:
            self.written.append((kind, head + body))
        else:
            self.too_large += 1

    @rule()
    def read_on(self):
        records, lost = self.reader.since(self.read)
        expected_lost = max(0, len(self.written) - self.read - self.slots)
        assert lost == expected_lost
        assert [(kind, payload) for _, kind, payload, _ in records] == self.written[self.read + expected_lost :]
        assert [record[0] for record in records] == list(range(self.read + expected_lost + 1, len(self.written) + 1))
        self.read = len(self.written)
        self.overwritten += lost

    @invariant()
    def counters(self):
        if hasattr(self, "writer"):
            assert self.reader.head() == self.writer.sequence == len(self.written)
            assert self.reader.drops() == {"too_large": self.too_large, "busy_writer": 0, "not_ready": 0, "probe_fault": 0}

    def teardown(self):
        if hasattr(self, "writer"):
            self.reader.close()
            self.writer.close()


TestRingModel = RingModel.TestCase
TestRingModel.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_overwritten_is_counted_exactly(ring):
    reader = RingReader(ring.fd)
    position = lost_in_all = read_in_all = 0
    rng = random.Random(3)
    for _ in range(400):
        for _ in range(rng.randrange(0, 25)):
            ring.write(wire.KIND_EVENT, b"x" * rng.randrange(0, 100))
        records, lost = reader.since(position)
        position = reader.head()
        lost_in_all += lost
        read_in_all += len(records)
    assert lost_in_all > 0
    assert read_in_all + lost_in_all == ring.sequence
    reader.close()


def test_the_file_cannot_be_changed_by_anybody(ring):
    for change in (lambda: os.ftruncate(ring.fd, 0), lambda: os.ftruncate(ring.fd, ring.size_bytes * 2)):
        with pytest.raises(PermissionError):
            change()
    with pytest.raises(PermissionError):
        fcntl.fcntl(ring.fd, 1033, 0x0008)  # nor may anybody seal it against us


def test_twin_an_unsealed_file_can_be_cut_under_the_reader():
    """The protection off: this is what would kill the daemon with SIGBUS."""
    code = (
        "import mmap, os\n"
        "fd = os.memfd_create('x', os.MFD_ALLOW_SEALING); os.posix_fallocate(fd, 0, 65536)\n"
        "view = mmap.mmap(fd, 65536); os.ftruncate(fd, 0); print(view[40000])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=False)
    assert done.returncode == -signal.SIGBUS


def test_memory_is_there_from_the_start(ring):
    """No sparse file: a later write can never meet a full tmpfs, which would be SIGBUS in the training process."""
    assert os.fstat(ring.fd).st_blocks * 512 >= ring.size_bytes


def test_a_record_that_does_not_fit_is_counted_and_changes_nothing(ring):
    reader = RingReader(ring.fd)
    assert ring.write(wire.KIND_EVENT, b"a" * (256 - wire.SLOT_HEADER_BYTES))
    assert not ring.write(wire.KIND_EVENT, b"a" * (256 - wire.SLOT_HEADER_BYTES), b"b")
    assert reader.head() == 1
    assert reader.drops()["too_large"] == 1
    reader.close()


def test_silent_after_a_fork(ring):
    reader = RingReader(ring.fd)
    ring.silent = True
    assert not ring.write(wire.KIND_EVENT, b"a")
    ring.count_dropped("too_large")
    assert reader.head() == 0
    assert not any(reader.drops().values())
    reader.close()


def test_a_write_that_was_interrupted_leaves_no_record(ring):
    """Ctrl-C in the middle of a write: the slot is invalid, and the next write takes the same number."""
    reader = RingReader(ring.fd)
    ring.write(wire.KIND_EVENT, b"first")

    class Interrupted(bytes):
        def __len__(self):
            raise KeyboardInterrupt

    real = wire.slot_crc
    wire.slot_crc = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            ring.write(wire.KIND_EVENT, b"second")
    finally:
        wire.slot_crc = real
    assert reader.since(0) == ([reader.slot(0)], 0)
    assert reader.slot(1) == "empty"
    assert ring.write(wire.KIND_EVENT, b"third")
    assert [payload for _, _, payload, _ in reader.since(0)[0]] == [b"first", b"third"]
    reader.close()


def _killed(writer, reader, times):
    """(records accepted, those of them that lie) after killing a writer so many times."""
    command = [sys.executable, "-S", str(KILLS), writer, reader, str(times)]
    environment = {"PYTHONPATH": str(Path(gpuwatch_hooks.__file__).parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=True, env=environment)
    return map(int, done.stdout.split())


def test_killed_1000_times_at_random_instants_no_torn_record_is_accepted():
    accepted, lying = _killed("safe", "checked", 1000)
    assert accepted > 1000 * 10
    assert lying == 0


def test_twin_without_order_and_checksum_torn_records_are_accepted():
    _, lying = _killed("unsafe", "unchecked", 100)
    assert lying > 0


def test_the_order_of_writing_alone_marks_a_torn_slot_invalid():
    _, lying = _killed("safe", "unchecked", 100)
    assert lying == 0
