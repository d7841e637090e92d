"""The control thread against a real socket: hand-over of the ring, exactly-once delivery, settings, farewell."""

import os
import signal
import socket
import threading
import time

import pytest
from gpuwatch_hooks import control, endpoint, wire

from tests.hooks.daemon_peer import wait_for
from tests.hooks.ring_reader import RingReader


def test_hello_says_who_we_are_and_hands_over_the_ring(make_daemon, make_session):
    daemon = make_daemon()
    session = make_session(GPUWATCH_RUN="resnet", GPUWATCH_TOKEN="t0k", RANK="3", LOCAL_RANK="1", WORLD_SIZE="8")
    assert session.arm()
    hello = wait_for(lambda: daemon.hellos, what="hello")[0]
    assert hello["wire"] == wire.WIRE_VERSION
    assert (hello["run"], hello["token"], hello["attempt_id"]) == ("resnet", "t0k", session.attempt_id)
    assert (hello["rank"], hello["local_rank"], hello["world_size"]) == (3, 1, 8)
    assert (hello["ns_pid"], hello["uid"]) == (os.getpid(), os.getuid())
    assert hello["ring"] == {"id": session.ring.ring_id, "slots": 1024, "slot_bytes": 16384}
    assert abs(time.monotonic_ns() - hello["clock"]["monotonic_ns"]) < 60e9
    assert abs(time.time_ns() - hello["clock"]["wall_ns"]) < 60e9
    reader = RingReader(daemon.ring_fds[0])
    session.write(wire.KIND_EVENT, b"payload")
    assert reader.since(0)[0][0][1:3] == (wire.KIND_EVENT, b"payload")
    reader.close()


def test_everything_arrives_once_and_in_order(make_daemon, make_session):
    daemon = make_daemon()
    session = make_session()
    session.arm()
    session.names("tensor", 1, 0, ["a.weight", "a.bias"], [6, 2])
    session.meta({"precision": "bf16", "lr": 0.1, "amp": True, "odd": object})
    for step in range(1000):
        session.scalar("loss", step, step / 7)
    session.scalar("nan", 1, float("nan"))
    session.media("text", "note", 4, [], b"# hello")
    session.media("images", "batch", 5, [1, 2, 2, 3], lambda: bytes(12))
    wait_for(lambda: len(daemon.media) == 2 and len(daemon.scalars()) == 1001, what="all messages")
    numbers = [message["n"] for message in daemon.messages]
    assert numbers == sorted(set(numbers))
    assert [row[:3] for row in daemon.scalars()[:1000]] == [["loss", step, step / 7] for step in range(1000)]
    assert daemon.scalars()[1000][2] != daemon.scalars()[1000][2]
    (names,) = daemon.of("names")
    assert (names["table"], names["version"], names["first"]) == ("tensor", 1, 0)
    assert (names["names"], names["numels"]) == (["a.weight", "a.bias"], [6, 2])
    facts = {name: value for message in daemon.of("meta") for name, value in message["facts"].items()}
    assert facts["precision"] == "bf16"
    assert facts["amp"] is True
    text, images = daemon.of("media")
    assert daemon.media[text["n"]][0] == b"# hello"
    assert (images["shape"], images["bytes"], daemon.media[images["n"]][0]) == ([1, 2, 2, 3], 12, bytes(12))
    assert daemon.media[images["n"]][1] == 0x1 | 0x2 | 0x4 | 0x8, "media are sealed in every way"
    wait_for(lambda: not session.outbox.unacknowledged(0), what="acknowledgements")


def test_a_daemon_that_comes_late_hears_what_was_kept(make_daemon, make_session, monkeypatch):
    monkeypatch.setattr(control, "LONGEST_DELAY_SECONDS", 0.2)
    session = make_session()
    session.arm()
    for step in range(50):
        session.scalar("loss", step, 1.0)
    time.sleep(0.3)
    daemon = make_daemon()
    wait_for(lambda: len(daemon.scalars()) == 50, what="the scalars")


def test_killed_daemons_lose_nothing_and_hear_nothing_twice(make_daemon, make_session, monkeypatch):
    """Some die before they acknowledge, some after; the journal is what survives, as on a disk."""
    monkeypatch.setattr(control, "FIRST_DELAY_SECONDS", 0.01)
    journal = {}
    session = make_session()
    session.arm()
    for life in range(8):
        daemon = make_daemon(remember=journal, acknowledge=life % 3 != 1)
        wait_for(lambda daemon=daemon: daemon.hellos, what="hello")
        for step in range(20):
            session.scalar("loss", life * 100 + step, float(life))
        wait_for(lambda daemon=daemon, life=life: life * 100 in [row[1] for row in daemon.scalars()], what="new scalars")
        daemon.close()
    daemon = make_daemon(remember=journal)
    expected = [life * 100 + step for life in range(8) for step in range(20)]
    rows = [row for message in journal[session.attempt_id] if message["t"] == "scalars" for row in message["rows"]]
    wait_for(lambda: not session.outbox.unacknowledged(0) and session.outbox.is_idle(), what="acknowledgements")
    rows = [row for message in journal[session.attempt_id] if message["t"] == "scalars" for row in message["rows"]]
    assert [row[1] for row in rows] == expected
    assert len({hello["ring"]["id"] for hello in daemon.hellos}) == 1


def test_a_daemon_without_memory_is_told_the_names_again(make_daemon, make_session, monkeypatch):
    monkeypatch.setattr(control, "FIRST_DELAY_SECONDS", 0.01)
    first = make_daemon()
    session = make_session()
    session.arm()
    session.names("tensor", 1, 0, ["old"], [1])
    session.names("tensor", 2, 0, [f"w{i}" for i in range(1500)], range(1500))
    session.names("tensor", 2, 1500, ["last"], [7])
    session.names("group", 1, 0, ["adam/0"])
    session.meta({"precision": "fp16"})
    wait_for(lambda: first.of("meta") and not session.outbox.unacknowledged(0), what="acknowledgements")
    first.close()
    second = make_daemon()
    wait_for(lambda: second.of("meta") and len(second.of("names")) >= 3, what="names")
    table = {}
    for message in second.of("names"):
        if message["table"] == "tensor":
            assert message["version"] == 2
            table.update({message["first"] + i: name for i, name in enumerate(message["names"])})
    assert table == {**{i: f"w{i}" for i in range(1500)}, 1500: "last"}
    assert [m["names"] for m in second.of("names") if m["table"] == "group"] == [["adam/0"]]
    assert second.of("meta")[0]["facts"]["precision"] == "fp16"


def test_settings_of_the_daemon_yield_to_the_users_own(make_daemon, make_session):
    daemon = make_daemon(welcome={"settings": {"every": 50, "histograms": False, "overhead_budget": 0.05, "socket": "/x"}})
    session = make_session(GPUWATCH_HOOKS_EVERY="3")
    before = session.settings
    session.arm()
    wait_for(lambda: session.settings is not before, what="settings")
    assert (session.settings.every, session.settings.histograms, session.settings.overhead_budget) == (3, False, 0.05)
    assert session.settings.socket == before.socket
    daemon.tell(t="set", kernel="triton")
    wait_for(lambda: session.settings.kernel == "triton", what="another kernel")
    daemon.tell(t="set", kernel="cuda")
    daemon.tell(t="set", every=7)
    wait_for(lambda: session.settings.every == 7, what="an explicit change")
    daemon.tell(t="set", every=0, histograms="yes")
    daemon.tell(t="no such verb", code="import os")
    daemon.connections[-1].send(b"not json")
    daemon.connections[-1].send(b"[1]")
    daemon.tell(t="set", overhead_budget=0.5)
    wait_for(lambda: session.settings.overhead_budget == 0.5, what="the next change")
    assert (session.settings.every, session.settings.histograms, session.settings.kernel) == (7, False, "triton")


def test_refused_means_quiet(make_daemon, make_session, said):
    daemon = make_daemon(welcome={"t": "refuse", "reason": "wire version 9 is not spoken here"})
    session = make_session()
    session.arm()
    wait_for(lambda: session.over, what="the end")
    wait_for(lambda: not session.control._thread.is_alive(), what="the end of the thread")
    assert not session.write(wire.KIND_EVENT, b"")
    assert len(daemon.hellos) == 1
    assert [text for text in said if "wire version 9" in text]


def test_detach_from_the_daemon_ends_everything(make_daemon, make_session):
    daemon = make_daemon()
    before = set(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    session = make_session()
    session.arm()
    wait_for(lambda: daemon.ring_fds and session.control.welcomes, what="the ring")
    session.scalar("last", 1, 2.0)
    daemon.tell(t="detach")
    wait_for(lambda: daemon.of("bye"), what="bye")
    reader = RingReader(daemon.ring_fds[0])
    assert reader.since(0)[0][-1][1] == wire.KIND_END
    assert wire.END_REASONS[wire.END_HEAD.unpack(reader.since(0)[0][-1][2])[1]] == "detached"
    reader.close()
    assert [row[:3] for row in daemon.scalars()] == [["last", 1, 2.0]]
    wait_for(lambda: threading.active_count() == threads, what="the end of the thread")
    daemon.connections.clear()
    wait_for(lambda: len(os.listdir("/proc/self/fd")) <= len(before) + 1, what="closed descriptors")  # the daemon's ring


def test_end_delivers_and_says_goodbye(make_daemon, make_session):
    daemon = make_daemon()
    session = make_session()
    session.arm()
    wait_for(lambda: daemon.hellos, what="hello")
    for step in range(3000):
        session.scalar("loss", step, 0.5)
    session.end("exit")
    assert len(daemon.scalars()) == 3000
    wait_for(lambda: daemon.messages[-1] == {"t": "bye"}, what="bye")
    reader = RingReader(daemon.ring_fds[0])
    assert wire.END_HEAD.unpack(reader.since(0)[0][-1][2]) == (0, wire.END_REASONS.index("exit"))
    reader.close()


def test_end_right_behind_the_beginning_still_hands_over_the_ring(make_daemon, make_session):
    daemon = make_daemon()
    session = make_session()
    session.arm()
    session.end("exit")
    assert daemon.ring_fds


@pytest.mark.parametrize("silence", [True, False])
def test_a_stuck_daemon_delays_the_end_by_two_seconds_at_most(make_daemon, make_session, silence):
    make_daemon(welcome={"t": "silence"} if silence else {}, acknowledge=False)
    session = make_session()
    session.arm()
    wait_for(lambda: session.control._reached, what="a connection")
    session.scalar("loss", 1, 1.0)
    began = time.monotonic()
    session.end("exit")
    assert 1.0 < time.monotonic() - began < 6.0


def test_without_a_daemon_the_end_does_not_wait(make_session):
    session = make_session()
    session.arm()
    wait_for(session.control._attempted.is_set, what="an attempt")
    session.scalar("loss", 1, 1.0)
    began = time.monotonic()
    session.end("exit")
    assert time.monotonic() - began < 1.0


def test_descriptor_only_for_root_ourselves_and_gpuwatch(make_daemon, make_session, monkeypatch, said):
    """H10: whoever else listens at the path gets neither the ring nor a hello."""
    daemon = make_daemon()
    monkeypatch.setattr(endpoint, "peer_uid", lambda _: 4711)
    session = make_session()
    session.arm()
    wait_for(lambda: [text for text in said if "4711" in text], what="the refusal")
    assert not daemon.hellos
    assert not daemon.ring_fds


def test_twin_without_the_check_the_ring_would_be_passed(make_daemon, make_session, monkeypatch):
    daemon = make_daemon()
    monkeypatch.setattr(endpoint, "peer_uid", lambda _: 4711)
    monkeypatch.setattr(endpoint, "is_trusted", lambda _: True)
    session = make_session()
    session.arm()
    wait_for(lambda: daemon.ring_fds, what="the ring")


def test_the_kernel_says_who_listens(make_daemon, socket_path):
    make_daemon()
    connection = endpoint.connect(str(socket_path))
    assert endpoint.peer_uid(connection) == os.getuid()
    connection.close()


def test_tries_for_ever_and_never_less_often_than_every_ten_seconds(make_session, monkeypatch):
    pauses = []
    monkeypatch.setattr(control.Control, "_pause", lambda _, seconds: pauses.append(seconds) or len(pauses) < 30)
    session = make_session()
    session.arm()
    session.control._thread.join(10)
    assert len(pauses) == 30
    assert pauses == sorted(pauses)
    assert pauses[0] <= 0.2
    assert pauses[-1] == 10.0


def test_something_else_at_the_path_is_survived(socket_path, make_session, monkeypatch, make_daemon):
    monkeypatch.setattr(control, "LONGEST_DELAY_SECONDS", 0.1)
    socket_path.write_text("not a socket")
    session = make_session()
    session.arm()
    wait_for(session.control._attempted.is_set, what="an attempt")
    socket_path.unlink()
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)  # the wrong kind of socket
    stream.bind(str(socket_path))
    stream.listen()
    time.sleep(0.3)
    stream.close()
    socket_path.unlink()
    daemon = make_daemon()
    wait_for(lambda: daemon.hellos, what="hello")


def test_signals_are_left_to_the_users_threads(make_session):
    """One that lands on our thread would not interrupt the user's own sleep or read in the main thread."""
    session = make_session()
    session.arm()
    wait_for(session.control._attempted.is_set, what="an attempt")
    with open(f"/proc/self/task/{session.control._thread.native_id}/status") as status:
        blocked = int(next(line for line in status if line.startswith("SigBlk")).split()[1], 16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD, signal.SIGALRM):
        assert blocked >> (number - 1) & 1
