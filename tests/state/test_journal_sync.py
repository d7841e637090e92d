"""What the journals hold is put on the disk by a thread that may wait, and nobody waits for it."""

import errno
import os
import threading
import time

import pytest
from gpuwatch_hooks import wire

from gpuwatch.selfstats import SelfStats
from gpuwatch.service.components import Worker
from gpuwatch.state.identity import Identity
from gpuwatch.state.journal_sync import JournalSync
from gpuwatch.state.store import State
from tests.state.recorded import hello, step_payload


class Recording:
    """A run whose steps are written one by one, and what was synced: (call, name of the file) in order."""

    def __init__(self, folder, monkeypatch):
        self.state = State(str(folder))
        self.run = self.state.open_run(hello(), Identity(0, 1, 1))
        self.step = 0
        self.calls = []
        monkeypatch.setattr(os, "fdatasync", self._noting("fdatasync", os.fdatasync))
        monkeypatch.setattr(os, "fsync", self._noting("fsync", os.fsync))

    def _noting(self, name, call):
        def noted(fd):
            self.calls.append((name, os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))
            call(fd)

        return noted

    def write(self, steps=1):
        for _ in range(steps):
            self.step += 1
            payload = step_payload(self.step, {"loss": 1.0})
            self.state.ring(self.run, [(self.step, time.monotonic_ns(), wire.KIND_STEP, payload)])

    def taken(self):
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def recording(tmp_path, monkeypatch):
    made = Recording(tmp_path, monkeypatch)
    yield made
    made.state.close()


def test_a_turn_syncs_what_has_grown_and_only_that(recording):
    sync = JournalSync(recording.state)
    sync.turn()
    assert recording.taken() == []  # nothing was written yet
    recording.write()
    sync.turn()
    assert recording.taken() == [("fdatasync", "000001.journal"), ("fsync", "journal")]  # with the file's name
    sync.turn()
    assert recording.taken() == []
    recording.write(5)
    assert recording.taken() == []  # whoever writes does not sync
    sync.turn()
    assert recording.taken() == [("fdatasync", "000001.journal")]


def test_a_segment_that_was_filled_since_the_last_turn_is_synced_to_its_end(recording, monkeypatch):
    sync = JournalSync(recording.state)
    recording.write()
    sync.turn()
    recording.taken()
    monkeypatch.setattr(recording.run.journal, "_segment_bytes", 1)  # each further batch opens one
    recording.write(2)
    os.unlink(f"{recording.run.path}/journal/000002.journal")  # as trimming does
    sync.turn()
    assert recording.taken() == [("fdatasync", "000001.journal"), ("fdatasync", "000003.journal"), ("fsync", "journal")]


def test_a_disk_that_refuses_is_told_and_tried_again(recording, monkeypatch):
    sync = JournalSync(recording.state)
    recording.write()
    fine = os.fdatasync

    def refuses(fd):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", refuses)
    with pytest.raises(OSError, match="Input/output"):
        sync.turn()
    monkeypatch.setattr(os, "fdatasync", fine)
    sync.turn()
    assert ("fdatasync", "000001.journal") in recording.taken()


@pytest.mark.parametrize("on_the_thread_that_writes", [False, True])
def test_a_disk_that_hangs_stops_only_the_thread_that_syncs(recording, monkeypatch, on_the_thread_that_writes):
    """The twin: synced where it is written, nothing more is acknowledged."""
    hangs, released = threading.Event(), threading.Event()

    def hang(fd):
        hangs.set()
        released.wait(30)

    recording.write()
    monkeypatch.setattr(os, "fdatasync", hang)
    syncer = Worker("journal_sync", JournalSync(recording.state).turn, SelfStats(), 0.01)
    written = threading.Event()

    def write():
        if on_the_thread_that_writes:
            recording.run.journal.sync()
        recording.write(100)
        written.set()

    writer = threading.Thread(target=write)
    try:
        syncer.start()
        assert hangs.wait(30)
        writer.start()
        assert written.wait(1.0 if on_the_thread_that_writes else 30.0) is not on_the_thread_that_writes
        acknowledged = recording.run.journal.durable_sequence[hello().ring_id]
        assert acknowledged == (1 if on_the_thread_that_writes else 101)
    finally:
        released.set()
        writer.join(30)
        assert syncer.stop(30)


def test_turns_cost_no_descriptor(recording):
    sync = JournalSync(recording.state)
    recording.write()
    sync.turn()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        recording.write()
        sync.turn()
    assert len(os.listdir("/proc/self/fd")) == before
