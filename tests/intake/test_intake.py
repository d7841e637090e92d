"""Intake from end to end, in one process: what a client does, what the state then knows, and what the client hears."""

import os
import subprocess
import sys
import time

import pytest
from gpuwatch_hooks import wire

from gpuwatch.config import Hooks, Limits


def losses(run):
    return dict(zip(run.windows["loss"].steps(), run.windows["loss"].values(), strict=True))


def test_steps_travel_from_the_ring_to_the_state(desk, client):
    client.connect()
    for step in range(1, 11):
        client.step(step, loss=1 / step)
    desk.pump()
    assert losses(desk.run()) == {step: 1 / step for step in range(1, 11)}
    assert desk.run().identity.pid == os.getpid()
    assert desk.run().identity.uid == os.getuid()


def test_welcome_names_the_run_and_its_settings(desk, client):
    client.connect()
    desk.pump()
    (welcome,) = client.heard()
    assert welcome["t"] == "welcome"
    assert welcome["run"] == welcome["directory"] == "digits"
    assert welcome["settings"] == {"every": 1, "histograms": True, "overhead_budget": 0.01, "kernel": "auto"}
    assert welcome["acked"] == 0


def test_numbered_messages_are_acknowledged_once_they_are_in_the_journal(desk, client):
    client.connect()
    client.numbered("names", table="tensor", version=1, first=0, names=["a", "b"], numels=[3, 4])
    client.numbered("scalars", rows=[["val/loss", 7, float("nan"), 5]])
    last = client.numbered("meta", facts={"precision": "fp32"})
    desk.pump()
    assert client.heard()[-1] == {"t": "ack", "n": last}
    run = desk.run()
    assert run.tensors.names == ["a", "b"]
    assert run.scalars["val/loss"].step == 7
    assert run.facts["precision"] == "fp32"
    assert run.journal.durable_number[client.ring.ring_id] == last


def test_what_is_sent_again_after_a_reconnect_counts_once(desk, client):
    client.connect()
    client.numbered("scalars", rows=[["a", 1, 1.0, 5]])
    desk.pump()
    client.connect()
    client.send({"t": "scalars", "n": 1, "rows": [["a", 1, 99.0, 5]]})
    client.send({"t": "scalars", "n": 2, "rows": [["a", 2, 2.0, 5]]})
    desk.pump()
    assert desk.run().scalars["a"].value == 2.0
    assert [message["n"] for message in client.heard() if message["t"] == "ack"] == [2]
    assert desk.run().journal.durable_number[client.ring.ring_id] == 2


def test_a_reconnect_keeps_the_session_and_reads_on(desk, client):
    client.connect()
    client.step(1)
    desk.pump()
    client.close()
    client.step(2)
    desk.pump()
    client.connect()
    client.step(3)
    desk.pump()
    assert list(losses(desk.run())) == [1, 2, 3]
    assert len(desk.state.runs) == 1


def test_goodbye_ends_the_run_after_its_ring_has_run_dry(desk, client):
    client.connect()
    for step in range(1, 301):
        client.step(step)
        if step % 40 == 0:
            desk.pump()
    client.ring.write(wire.KIND_END, wire.END_HEAD.pack(300, 0))
    client.send({"t": "bye"})
    assert desk.pump(until=lambda: not desk.intake.sessions)
    assert desk.run().status == "finished"
    assert desk.run().last_step == 300
    assert client.heard()[-1] is None


def test_goodbye_behind_more_than_one_turn_may_take(desk, make_client):
    client = make_client(slot_count=1024, slot_bytes=512)
    client.connect()
    for step in range(1, 1001):
        client.step(step)
    client.ring.write(wire.KIND_END, wire.END_HEAD.pack(1000, 0))
    client.send({"t": "bye"})
    assert desk.pump(until=lambda: desk.state.runs and not desk.intake.sessions)
    assert (desk.run().last_step, desk.run().status) == (1000, "finished")


WRITER = """
import sys, time, os, signal
sys.path.insert(0, sys.argv[2])
from tests.intake.conftest import Client
client = Client(sys.argv[1]).connect()
client.n = 0
for step in range(1, 41):
    client.step(step)
client.numbered("scalars", rows=[["last/words", 1, 0.5, 1]])
print("ready", flush=True)
if sys.argv[3] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["kill", "wait"])
def test_a_killed_process_is_noticed_by_the_kernels_word_and_read_to_its_end(desk, tmp_path, how):
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(desk.path), root, how], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n"
        if how == "wait":
            desk.pump()
            assert desk.run().status == "live"
            process.kill()
        process.wait(10)
        began = time.monotonic()
        assert desk.pump(until=lambda: desk.state.runs and desk.run().status == "lost")
        assert time.monotonic() - began < 1.0
        assert desk.run().last_step == 40
        assert "last/words" in desk.run().scalars
        assert not desk.intake.sessions
        assert not desk.intake.peers
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def test_processes_that_come_and_go_leave_nothing_registered(desk, tmp_path):
    """Each one's descriptors get the numbers of those before it: what was not let go of would be met again."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    before = len(desk.selector.get_map())
    for number in range(1, 4):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(desk.path), root, "wait"], stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"ready\n"
            assert desk.pump(until=lambda: len(desk.state.runs) == number)  # noqa: B023
            assert len(desk.selector.get_map()) == before + 2
            process.kill()
        assert desk.pump(until=lambda: not desk.intake.sessions)
        assert len(desk.selector.get_map()) == before
    assert {run.last_step for run in desk.state.runs.values()} == {40}
    assert not desk.stats.counters().keys() & {("faults", "message"), ("faults", "ring")}


def test_a_second_ring_of_the_same_process_ends_the_first(desk, make_client):
    old, new = make_client(), make_client()
    old.connect()
    old.step(1)
    desk.pump()
    new.connect()
    new.step(1)
    desk.pump()
    assert [session.reader.ring_id for session in desk.intake.sessions.values()] == [new.ring.ring_id]
    assert sorted(run.status for run in desk.state.runs.values()) == ["live", "lost"]


def test_overwritten_records_are_counted_to_the_record(desk, make_client):
    client = make_client(slot_count=16)
    client.connect()
    desk.pump()
    for step in range(1, 101):
        client.step(step)
    desk.pump()
    run = desk.run()
    assert run.counters.dropped["overwritten"] == 84
    assert run.counters.records == 16
    assert list(losses(run)) == list(range(85, 101))


def test_a_ring_with_an_impossible_head_costs_its_own_run_alone(desk, make_client, monkeypatch):
    hostile, honest = make_client(), make_client()
    hostile.connect(run="hostile")
    desk.pump()
    monkeypatch.setattr("gpuwatch.intake.peers.start_ticks", lambda pid: 1)  # another process, as the kernel would name it
    honest.connect()
    hostile.ring._words[wire.HEAD_WORD] = (1 << 64) - 1
    honest.step(1)
    desk.pump()
    desk.state.tick()
    assert desk.run("hostile").status == "lost"
    assert desk.run("hostile").counters.dropped.get("overwritten", 0) == 0
    assert desk.run().last_step == 1
    assert hostile.heard()[-1] is None


def test_the_hooks_own_losses_are_counted_once(desk, client):
    client.connect()
    client.ring.count_dropped("too_large", 3)
    desk.pump()
    client.ring.count_dropped("too_large", 2)
    client.ring.count_dropped("busy_writer")
    desk.pump()
    dropped = desk.run().counters.dropped
    assert dropped["too_large"] == 5
    assert dropped["busy_writer"] == 1


def test_hello_of_another_wire_version_is_refused_politely(desk, client):
    client.connect(wire=wire.WIRE_VERSION + 1, ring="of another shape")
    desk.pump()
    refusal, end = client.heard()
    assert refusal["t"] == "refuse"
    assert "wire version 2" in refusal["reason"]
    assert end is None
    assert not desk.state.runs


@pytest.mark.parametrize(
    "message",
    [b"", b"{", b"[]", b'{"t": 1}', b'{"t": "hello"}', b'{"t": "bye"}', b"\xff\xfe", b'{"t": "scalars", "n": 1, "rows": []}'],
)
def test_a_first_message_that_is_no_hello_costs_the_connection(desk, client, message):
    client.dial()
    client.send(message)
    desk.pump()
    assert client.heard()[-1] is None
    assert not desk.intake.peers


def test_no_hello_in_time_costs_the_connection(make_desk, client):
    desk = make_desk(Limits(handshake_seconds=0.05))
    client.dial()
    assert desk.pump(until=lambda: desk.stats.value("peers_refused", "slow_handshake") == 1)
    desk.pump()
    assert client.heard() == [None]
    desk.close()


def test_quota_of_connections_for_each_user(make_desk, make_client):
    desk = make_desk(Limits(peers_per_uid=3))
    clients = [make_client().dial() for _ in range(5)]
    desk.pump()
    assert [client.heard() for client in clients] == [[], [], [], [None], [None]]
    assert desk.stats.value("peers_refused", "too_many_peers_of_uid") == 2
    clients[0].close()
    desk.pump()
    clients[3].connect()
    desk.pump()
    assert clients[3].heard()[0]["t"] == "welcome"
    desk.close()


def test_no_room_for_another_run_closes_without_a_word_so_that_the_hooks_come_again(make_desk, make_client, monkeypatch):
    desk = make_desk(runs_per_uid=1)
    first, second = make_client(), make_client()
    first.connect()
    desk.pump()
    # A second process of this user, as the kernel would name it.
    monkeypatch.setattr("gpuwatch.intake.peers.start_ticks", lambda pid: 1)
    second.connect()
    desk.pump()
    assert second.heard() == [None]
    assert desk.stats.value("peers_refused", "no_room") == 1
    assert desk.run().status == "live"
    desk.close()


def test_settings_reach_everybody_who_is_connected(desk, client):
    client.connect()
    desk.pump()
    desk.intake.reconfigure(Hooks(every=10, histograms=False))
    assert client.heard()[-1] == {"t": "set", "every": 10, "histograms": False, "overhead_budget": 0.01, "kernel": "auto"}


def test_a_peer_that_never_reads_is_left_and_its_ring_is_not(desk, client):
    client.connect()
    desk.pump()
    for every in range(1, 5000):
        desk.intake.reconfigure(Hooks(every=every))
        if not desk.intake.peers:
            break
    assert desk.stats.value("peers_lost", "does_not_read") == 1
    client.step(1)
    desk.pump()
    assert desk.run().last_step == 1


def test_descriptors_stay_constant(desk, make_client):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    ring = make_client()
    before = None
    for _ in range(30):
        ring.connect()
        ring.numbered("meta", facts={"a": 1})
        desk.pump()
        ring.close()
        desk.pump()
        before = before or descriptors()
    assert descriptors() == before


def test_a_daemon_that_comes_back_goes_on_where_the_journal_ends(make_desk, client):
    first = make_desk()
    client.connect()
    client.numbered("scalars", rows=[["a", 1, 1.0, 5]])
    for step in range(1, 21):
        client.step(step)
    first.pump()
    first.crash()
    for step in range(21, 31):
        client.step(step)
    second = make_desk()
    client.connect()
    client.send({"t": "scalars", "n": 1, "rows": [["a", 1, 77.0, 5]]})
    client.n = 1
    client.numbered("scalars", rows=[["b", 2, 2.0, 5]])
    second.pump()
    run = second.run()
    assert list(second.state.runs) == ["digits"]
    assert run.last_step == 30
    assert run.counters.steps == 30
    assert run.counters.dropped.get("overwritten", 0) == 0
    assert run.scalars["a"].value == 1.0
    assert client.heard()[0]["acked"] == 1
    second.close()


def test_overwritten_while_no_daemon_was_there_is_exact_over_a_crash(make_desk, make_client):
    client = make_client(slot_count=16)
    first = make_desk()
    client.connect()
    desk_steps = 0
    for step in range(1, 41):
        client.step(step)
        if step % 20 == 0:
            first.pump()
            desk_steps += 16
    assert first.run().counters.dropped["overwritten"] == 8
    first.crash()
    for step in range(41, 101):
        client.step(step)
    second = make_desk()
    client.connect()
    second.pump()
    counters = second.run().counters
    assert counters.records == 48
    assert counters.dropped["overwritten"] == 52
    second.close()
