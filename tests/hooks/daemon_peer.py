"""The other end of the control socket, for the tests of the hooks: a small real daemon in a thread, from the protocol alone."""

import contextlib
import json
import os
import select
import socket
import threading
import time

from gpuwatch_hooks import wire


def wait_for(condition, seconds=10.0, what="the condition"):
    """The condition's first true value, or AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError(f"{what} did not come within {seconds} s")


class DaemonPeer:
    """Listens at `path`; collects messages with what came along; answers hello with `welcome` and acks what it is told to."""

    def __init__(self, path, welcome=None, acknowledge=True, remember=None):
        self.path = str(path)
        self.welcome = {"settings": {}, **(welcome or {})}
        self.acknowledge = acknowledge
        self.journal = {} if remember is None else remember  # attempt id -> [messages with a number], as a journal would
        self.hellos, self.messages, self.media, self.ring_fds = [], [], {}, []
        self.connections = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.path)
        self._listener.listen(64)
        self._wake, self._waker = os.pipe()
        self._ends = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self):
        """End as a killed daemon does: no word, connections gone."""
        self._ends = True
        os.write(self._waker, b"x")
        self._thread.join(10)
        for connection in [self._listener, *self.connections]:
            connection.close()
        for fd in self.ring_fds:
            os.close(fd)
        self.ring_fds = []
        os.close(self._wake)
        os.close(self._waker)
        os.unlink(self.path)

    def tell(self, **message):
        self.connections[-1].send(json.dumps(message).encode())

    def of(self, kind):
        return [message for message in list(self.messages) if message["t"] == kind]

    def scalars(self):
        return [row for message in self.of("scalars") for row in message["rows"]]

    def _serve(self):
        attempts = {}
        while not self._ends:
            readable, _, _ = select.select([self._wake, self._listener, *self.connections], [], [])
            for source in readable:
                if source is self._listener:
                    self.connections.append(self._listener.accept()[0])
                elif source is not self._wake:
                    self._take(source, attempts)

    def _take(self, source, attempts):
        try:
            raw, fds, _, _ = socket.recv_fds(source, wire.MAX_MESSAGE_BYTES + 1, 1)
        except OSError:
            raw, fds = b"", []
        if not raw:
            self.connections.remove(source)
            source.close()
            return
        assert len(raw) <= wire.MAX_MESSAGE_BYTES
        message = json.loads(raw)
        if message["t"] == "hello":
            self.hellos.append(message)
            self.ring_fds += fds
            kept = self.journal.setdefault(message["attempt_id"], [])
            attempts[source] = kept
            if self.welcome.get("t") != "silence":
                acked = kept[-1]["n"] if kept else 0
                source.send(json.dumps({"t": "welcome", "run": message["run"], "acked": acked, **self.welcome}).encode())
            return
        kept = attempts[source]
        if "n" in message and kept and message["n"] <= kept[-1]["n"]:
            for fd in fds:
                os.close(fd)
            return
        for fd in fds:
            self.media[message["n"]] = (os.pread(fd, 1 << 25, 0), fd_seals(fd))
            os.close(fd)
        self.messages.append(message)
        if "n" in message and self.acknowledge:
            kept.append(message)
            with contextlib.suppress(OSError):  # the job may have ended meanwhile
                source.send(json.dumps({"t": "ack", "n": message["n"]}).encode())


def fd_seals(fd):
    import fcntl

    return fcntl.fcntl(fd, 1034)
