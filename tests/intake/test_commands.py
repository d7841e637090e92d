"""A command for a connected job, over a real socket: who may give it, what the job hears, what the caller is told."""

import json
import os
import socket

import pytest

from gpuwatch.intake import commands
from gpuwatch.intake.decode import Command, decode_message
from gpuwatch.state.identity import Identity
from gpuwatch.state.records import DecodeError


@pytest.fixture
def caller(client):
    """`caller(message)` sends one command on a connection of its own; `caller.heard()` is the reply."""
    connections = []

    def send(message):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(str(client.path))
        connection.settimeout(5)
        connections.append(connection)
        connection.send(json.dumps({"t": "command", **message}).encode())
        return connection

    yield send
    for connection in connections:
        connection.close()


def test_a_command_reaches_the_job(desk, client, caller):
    client.connect()
    desk.pump()
    client.heard()
    asked = caller({"verb": "set", "pid": os.getpid(), "settings": {"every": 7}})
    desk.pump()
    assert json.loads(asked.recv(4096)) == {"t": "done"}
    assert client.heard() == [{"t": "set", "every": 7}]
    asked = caller({"verb": "detach", "pid": os.getpid()})
    desk.pump()
    assert json.loads(asked.recv(4096)) == {"t": "done"}
    assert client.heard() == [{"t": "detach"}]


def test_a_job_that_is_not_connected_cannot_be_told(desk, client, caller):
    client.connect()
    desk.pump()
    asked = caller({"verb": "detach", "pid": 1})
    desk.pump()
    reply = json.loads(asked.recv(4096))
    assert reply["t"] == "refuse"
    assert "process 1" in reply["reason"]
    assert [message["t"] for message in client.heard()] == ["welcome"]


@pytest.mark.parametrize(("uid", "may"), [(0, True), (1000, True), (1001, False)])
def test_only_root_and_the_jobs_own_user_may(uid, may, desk, client):
    client.connect()
    desk.pump()
    client.heard()
    [session] = desk.intake.sessions.values()
    session.identity = Identity(1000, 4711, 5)
    reply = commands.obey(Command("detach", 4711, {}), Identity(uid, 99, 1), [session])
    assert reply["t"] == ("done" if may else "refuse")
    assert bool(client.heard()) == may


def test_a_job_may_not_command(desk, client):
    """A command on a connection that has said hello ends that connection."""
    client.connect()
    desk.pump()
    client.heard()
    client.send({"t": "command", "verb": "detach", "pid": os.getpid()})
    desk.pump()
    refusal, end = client.heard()
    assert refusal["t"] == "refuse"
    assert end is None


@pytest.mark.parametrize(
    "message",
    [
        {"verb": "eval", "pid": 5},
        {"verb": "detach", "pid": 0},
        {"verb": "detach"},
        {"verb": "set", "pid": 5, "settings": {"t": 1}},
        {"verb": "set", "pid": 5, "settings": {"every": "import os"}},
        {"verb": "set", "pid": 5, "settings": {str(n): n for n in range(17)}},
    ],
)
def test_only_fixed_verbs_and_numbers(message):
    with pytest.raises(DecodeError):
        decode_message(json.dumps({"t": "command", **message}).encode())
