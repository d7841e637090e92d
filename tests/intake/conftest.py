"""A real intake on a real socket, turned by hand, and a client that speaks the hooks' side of it."""

import json
import os
import selectors
import socket
import struct
import time

import pytest
from gpuwatch_hooks import wire
from gpuwatch_hooks.ring import RingWriter

from gpuwatch.config import Hooks, Limits
from gpuwatch.intake.intake import Intake
from gpuwatch.intake.listener import bind
from gpuwatch.selfstats import SelfStats
from gpuwatch.state.store import State


def step_record(step, loss=0.5, flags=wire.STEP_COMPLETE):
    """The payload of a STEP record that carries a loss and nothing else."""
    fields = [0.0] * len(wire.STEP_FIELDS)
    fields[wire.STEP_FIELD_INDEX["loss"]] = loss
    return wire.pack_step(step, 0, flags, 1 << wire.STEP_FIELD_INDEX["loss"], struct.pack(f"<{len(fields)}d", *fields), [])


class Client:
    """One training process as far as the daemon can tell: a ring, a connection, and numbered messages."""

    def __init__(self, path, slot_count=64, slot_bytes=2048):
        self.path = path
        self.ring = RingWriter(slot_count, slot_bytes)
        self.socket = None
        self.n = 0

    def hello(self, **changes):
        message = {
            "t": "hello",
            "wire": wire.WIRE_VERSION,
            "version": "0.1.0",
            "run": "digits",
            "token": "t",
            "attempt_id": "a",
            "rank": 0,
            "local_rank": 0,
            "world_size": 1,
            "python": "3.11",
            "torch": "2.13",
            "framework": "",
            "program": "train.py",
            "clock": {"monotonic_ns": time.monotonic_ns(), "wall_ns": time.time_ns()},
            "ring": {"id": self.ring.ring_id, "slots": self.ring.slot_count, "slot_bytes": self.ring.slot_bytes},
            "ns_pid": os.getpid(),
            "uid": os.getuid(),
            "device": "cpu",
        }
        return {**message, **changes}

    def dial(self):
        self.close()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect(str(self.path))
        self.socket.setblocking(False)
        return self

    def connect(self, **changes):
        """Connect and say hello."""
        self.dial()
        self.send(self.hello(**changes), self.ring.fd)
        return self

    def send(self, message, *fds):
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        if fds:
            socket.send_fds(self.socket, [data], list(fds))
        else:
            self.socket.send(data)

    def numbered(self, kind, **fields):
        """Send a message with the next number."""
        self.n += 1
        self.send({"t": kind, "n": self.n, **fields})
        return self.n

    def heard(self):
        """What the daemon has said since, decoded; None at the end says that it has hung up."""
        messages = []
        while True:
            try:
                data = self.socket.recv(1 << 17)
            except BlockingIOError:
                return messages
            except ConnectionError:
                data = b""
            if not data:
                return [*messages, None]
            messages.append(json.loads(data))

    def step(self, step, loss=0.5):
        self.ring.write(wire.KIND_STEP, step_record(step, loss))

    def close(self):
        if self.socket is not None:
            self.socket.close()
            self.socket = None


class Desk:
    """An Intake with all that it needs, and `pump` instead of a loop."""

    def __init__(self, folder, limits=None, **state_options):
        self.logdir = folder / "runs"
        self.path = folder / "gpuwatch.sock"
        self.stats = SelfStats()
        self.state = State(str(self.logdir), **state_options)
        self.selector = selectors.DefaultSelector()
        self.limits = limits or Limits()
        self.intake = Intake(self.state, bind(self.path), self.selector, self.stats, self.limits, Hooks())

    def pump(self, until=None, seconds=5.0):
        """Turn until `until()` holds (then return True), or until everything has been quiet for some turns."""
        deadline = time.monotonic() + seconds
        quiet = 0
        while time.monotonic() < deadline:
            ready = self.selector.select(0.002)
            for key, events in ready:
                key.data(events)
            more = self.intake.turn()
            if until is not None and until():
                return True
            quiet = 0 if ready or more else quiet + 1
            if until is None and quiet >= 3:
                return False
        return False

    def run(self, directory="digits"):
        return self.state.runs[directory]

    def crash(self):
        """What a kill -9 leaves: descriptors closed, nothing flushed, nothing said."""
        self.intake.close()
        for run in self.state.runs.values():
            if run.journal is not None and run.journal.directory_fd >= 0:
                run.journal._close_segment()
                os.close(run.journal.directory_fd)
                run.journal.directory_fd = -1
            if run.place.fd >= 0:
                os.close(run.place.fd)
                run.place.fd = -1

    def close(self):
        self.intake.close()
        self.state.close()
        self.selector.close()


@pytest.fixture
def make_desk(tmp_path):
    desks = []

    def make(limits=None, **state_options):
        desk = Desk(tmp_path, limits, **state_options)
        desks.append(desk)
        return desk

    yield make
    for desk in desks:
        desk.selector.close() if desk.selector.get_map() is None else None


@pytest.fixture
def desk(make_desk):
    desk = make_desk()
    yield desk
    desk.close()


@pytest.fixture
def make_client(tmp_path):
    clients = []

    def make(**ring):
        client = Client(tmp_path / "gpuwatch.sock", **ring)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()
        client.ring.close()


@pytest.fixture
def client(make_client):
    return make_client()
