"""The session: arming, one writer at a time, the end and its reason, and silence where there is no room to work."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from gpuwatch_hooks import recorder, wire
from gpuwatch_hooks import ring as ring_module
from gpuwatch_hooks import session as session_module

from tests.hooks.daemon_peer import wait_for
from tests.hooks.ring_reader import RingReader


@pytest.fixture
def armed(make_session):
    session = make_session()
    session.arm()
    return session


@pytest.fixture
def reader(armed):
    reader = RingReader(armed.ring.fd)
    yield reader
    reader.close()


def test_nothing_happens_before_the_first_step(make_session):
    before, threads = os.listdir("/proc/self/fd"), threading.active_count()
    session = make_session()
    assert not session.write(wire.KIND_EVENT, b"x")
    session.scalar("loss", 1, 1.0)
    session.meta({"a": 1})
    assert os.listdir("/proc/self/fd") == before
    assert threading.active_count() == threads


def test_arming_twice_is_arming_once(armed):
    ring, control = armed.ring, armed.control
    assert armed.arm()
    assert (armed.ring, armed.control) == (ring, control)


def test_two_threads_that_take_their_first_step_at_once_make_one_ring(make_session, monkeypatch):
    session, inside, made = make_session(), threading.Event(), []
    begin = session._begin

    def slowly():
        made.append(threading.get_ident())
        inside.set()
        time.sleep(0.2)
        begin()

    monkeypatch.setattr(session, "_begin", slowly)
    first = threading.Thread(target=session.arm)
    first.start()
    inside.wait(10)
    assert not session.arm()
    first.join()
    assert session.arm()
    assert len(made) == 1


def test_events_from_before_the_first_step_are_not_lost(make_session):
    session = make_session()
    session.event("notice", 0, 1.5, "early")
    session.arm()
    reader = RingReader(session.ring.fd)
    (record,) = reader.since(0)[0]
    assert wire.EVENT_HEAD.unpack_from(record[2]) == (0, wire.EVENT_CODES.index("notice"), 1.5)
    assert record[2][wire.EVENT_HEAD.size :] == b"early"
    reader.close()


@pytest.mark.parametrize("text", ["x" * 5000, "\N{SNOWMAN}" * 400, "\ud800 lone surrogate"])
def test_event_text_is_cut_to_whole_characters(armed, reader, text):
    assert armed.event("notice", 1, 0.0, text)
    raw = reader.since(0)[0][-1][2][wire.EVENT_HEAD.size :]
    assert len(raw) <= wire.MAX_EVENT_TEXT_BYTES
    assert raw.decode()


def test_the_second_writer_drops_and_is_counted(armed, reader):
    """The other thread is inside a write: ours gives up at once instead of waiting."""
    inside, go_on = threading.Event(), threading.Event()
    real = armed.ring.write

    def slow(*record):
        inside.set()
        go_on.wait(10)
        return real(*record)

    armed.ring.write = slow
    thread = threading.Thread(target=armed.write, args=(wire.KIND_EVENT, b"first"))
    thread.start()
    inside.wait(10)
    began = time.monotonic()
    assert not armed.write(wire.KIND_EVENT, b"second")
    assert time.monotonic() - began < 1
    go_on.set()
    thread.join()
    assert armed.write(wire.KIND_EVENT, b"third")
    assert [payload for _, _, payload, _ in reader.since(0)[0]] == [b"first", b"third"]
    assert reader.drops()["busy_writer"] == 1


def _write_from_threads(session):
    """4 threads x 500 records through the session; how many it said it took."""
    taken, barrier = [], threading.Barrier(4)

    def write(number):
        barrier.wait()
        mine = 0
        for index in range(500):
            mine += session.write(wire.KIND_EVENT, bytes([number]) * 3000, bytes([index % 256]) * 3000)
        taken.append(mine)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(taken)


def test_many_threads_every_record_is_whole_or_counted(armed, reader):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        taken = _write_from_threads(armed)
    finally:
        sys.setswitchinterval(interval)
    armed.write(wire.KIND_EVENT, b"")  # lets the last drops be counted
    assert reader.head() == taken + 1
    assert taken + reader.drops()["busy_writer"] == 4 * 500
    slots = [reader.slot(index) for index in range(reader.slots)]
    assert "torn" not in slots
    for _, _, payload, _ in [slot for slot in slots if slot != "empty"]:
        if payload:
            assert len(set(payload[:3000])) == len(set(payload[3000:])) == 1


def test_twin_without_the_gate_threads_tear_each_others_records(armed, reader, monkeypatch):
    monkeypatch.setattr(session_module.Session, "write", lambda self, *record: self.ring.write(*record))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        taken = _write_from_threads(armed)
    finally:
        sys.setswitchinterval(interval)
    assert reader.head() != taken


def test_a_writer_interrupted_at_the_gate_gets_in_again(armed, reader):
    """Ctrl-C between the gate and the try: a lock would stay shut for ever."""
    armed._writer["writer"] = threading.get_ident()
    assert armed.write(wire.KIND_EVENT, b"x")
    assert reader.drops()["busy_writer"] == 0


def test_drops_of_every_reason_reach_the_ring(armed, reader):
    for reason in wire.DROP_REASONS:
        armed.drop(reason)
    armed.write(wire.KIND_EVENT, b"x" * (1 << 20))
    armed.write(wire.KIND_EVENT, b"")
    assert reader.drops() == {"too_large": 2, "busy_writer": 1, "not_ready": 1, "probe_fault": 1}


def test_no_memory_for_the_ring_is_told_once_and_training_goes_on(make_session, monkeypatch, said):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ring_module.os, "posix_fallocate", full)
    before = os.listdir("/proc/self/fd")
    session = make_session()
    for _ in range(3):
        assert not session.arm()
        assert not session.write(wire.KIND_EVENT, b"")
    assert len(said) == 1
    assert "No space left" in said.pop()
    assert os.listdir("/proc/self/fd") == before


def test_a_kernel_without_memfd_is_told_once(make_session, monkeypatch, said):
    monkeypatch.delattr(os, "memfd_create")
    session = make_session()
    assert not session.arm()
    assert len(said) == 1


def test_no_more_threads_is_told_once_and_leaves_no_descriptor(make_session, monkeypatch, said):
    def none(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    before = os.listdir("/proc/self/fd")
    session = make_session()
    assert not session.arm()
    assert len(said) == 1
    assert os.listdir("/proc/self/fd") == before


def test_a_faulty_recorder_is_told_once_and_leaves_no_patch(make_session, monkeypatch, said):
    backward = torch.autograd.backward

    def breaks(self):
        self.session.ledger.wrap(torch.autograd, "backward", lambda original: original)
        raise RuntimeError("this torch is odd")

    monkeypatch.setattr(recorder.Recorder, "install", breaks)
    session = make_session()
    session.install()
    session.install()
    assert torch.autograd.backward is backward
    assert not session.arm()
    assert ["this torch is odd" in text for text in said] == [True]


def test_after_the_end_everything_does_nothing(armed):
    armed.end("exit")
    assert not armed.write(wire.KIND_EVENT, b"")
    assert not armed.event("notice", 1, 0.0, "late")
    armed.scalar("loss", 1, 1.0)
    armed.names("tensor", 1, 0, ["a"])
    armed.meta({"a": 1})
    assert not armed.media("text", "t", 1, [], b"x")
    assert not armed.arm()
    armed.end("exit")
    armed.detach()


def test_detach_leaves_no_thread_no_descriptor_and_no_memory(make_session):
    def mapped():
        with open("/proc/self/maps") as maps:
            return sum("gpuwatch-ring" in line for line in maps)

    before, threads = os.listdir("/proc/self/fd"), threading.active_count()
    session = make_session()
    session.arm()
    assert mapped() == 1
    session.detach()
    wait_for(lambda: threading.active_count() == threads, what="the end of the thread")
    assert os.listdir("/proc/self/fd") == before
    assert mapped() == 0


def test_a_new_session_follows_a_detached_one_only_when_asked_for(monkeypatch):
    monkeypatch.setattr(session_module, "_current", None)
    first = session_module.current()
    assert session_module.renewed() is first
    first.detach()
    assert session_module.current() is first
    second = session_module.renewed()
    assert second is not first
    assert session_module.current() is second


TRAINS = """
import sys
from gpuwatch_hooks import session, wire
s = session.current()
s.arm()
fields = bytes(8 * len(wire.STEP_FIELDS))
for step in range(1, 8):
    s.write(wire.KIND_STEP, wire.pack_step(step, 0, 0, 0, fields, ()))
{ending}
"""


@pytest.mark.parametrize(
    ("ending", "status", "reason"),
    [
        ("", 0, "exit"),
        ("sys.exit(3)", 3, "exit"),
        ("raise ValueError('boom')", 1, "exception"),
        ("raise KeyboardInterrupt", -2, "exception"),
        ("try:\n    1 / 0\nexcept ZeroDivisionError:\n    pass", 0, "exit"),
    ],
)
def test_the_end_says_why_and_leaves_exit_code_and_stderr_alone(make_daemon, ending, status, reason):
    daemon = make_daemon()
    code = TRAINS.format(ending=ending)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    bare = subprocess.run(
        [sys.executable, "-c", "import sys\n" + ending], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == bare.returncode == status
    assert done.stderr.splitlines()[-1:] == bare.stderr.splitlines()[-1:]
    reader = RingReader(wait_for(lambda: daemon.ring_fds)[0])
    _, kind, payload, _ = reader.since(0)[0][-1]
    assert kind == wire.KIND_END
    assert wire.END_HEAD.unpack(payload) == (7, wire.END_REASONS.index(reason))
    wait_for(lambda: daemon.messages[-1:] == [{"t": "bye"}], what="bye")
    reader.close()
    assert len(_records(daemon)) == 8


def _records(daemon):
    reader = RingReader(daemon.ring_fds[0])
    records = reader.since(0)[0]
    reader.close()
    return records


def test_the_last_steps_outlive_sigkill(make_daemon):
    daemon = make_daemon()
    code = TRAINS.format(ending="import os, time; time.sleep(0 if s.control.welcomes else 1); os.kill(os.getpid(), 9)")
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == -9
    assert [kind for _, kind, _, _ in _records(daemon)] == [wire.KIND_STEP] * 7
