"""Who may pause the sampler over the control socket, and that the reply is what is."""

import json
import os
import socket

import pytest

from gpuwatch.intake import sampling
from gpuwatch.intake.decode import SamplingRequest, decode_message
from gpuwatch.state.identity import Identity
from gpuwatch.state.records import DecodeError


class Recorded:
    """Stands where the supervisor does, and writes down what it is told."""

    def __init__(self):
        self.told = []

    def pause(self, *, release=False):
        self.told.append(("pause", release))

    def resume(self):
        self.told.append(("resume",))

    def child_pids(self):
        return [7]


@pytest.mark.parametrize(("uid", "may"), [(0, True), (1000, True), (1001, False)])
def test_root_and_the_daemons_own_user_may(uid, may, desk, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    told = Recorded()
    replies = [
        sampling.obey(SamplingRequest(verb, release=release), Identity(uid, 4, 5), told, desk.state)
        for verb, release in (("pause", False), ("pause", True), ("resume", False))
    ]
    assert told.told == ([("pause", False), ("pause", True), ("resume",)] if may else [])
    assert {reply["t"] for reply in replies} == ({"done"} if may else {"refuse"})
    if not may:
        assert replies[0]["reason"] == "the daemon belongs to uid 1000, you are 1001: ask with sudo"


def test_everybody_may_ask(desk):
    reply = sampling.obey(SamplingRequest("state"), Identity(54321, 4, 5), Recorded(), desk.state)
    assert reply == {"t": "done", "state": "starting", "message": "", "processes": [7]}


def test_over_the_socket_of_a_daemon_that_does_not_sample(desk, client):
    answers = []
    for verb in ("state", "pause"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
            asking.connect(str(client.path))
            asking.settimeout(5)
            asking.send(json.dumps({"t": "sampling", "verb": verb}).encode())
            desk.pump()
            answers.append(json.loads(asking.recv(4096)))
    assert answers[0]["t"] == "done"
    assert answers[1] == {"t": "refuse", "reason": "this daemon does not sample GPUs (sampling.gpus is false)"}


def test_a_training_process_may_not_ask_in_its_own_session(desk, client):
    client.connect()
    desk.pump()
    client.heard()
    client.send({"t": "sampling", "verb": "pause"})
    desk.pump()
    assert desk.stats.value("peers_refused", "malformed_message") == 1


@pytest.mark.parametrize(
    "message", [{"verb": "stop"}, {"verb": "pause", "release": "yes"}, {}, {"verb": ["pause"]}, {"verb": None}]
)
def test_anything_else_is_malformed(message):
    with pytest.raises(DecodeError):
        decode_message(json.dumps({"t": "sampling", **message}).encode())
