"""One connection of the control socket: who calls, what it says, and what waits to be said to it.

Who calls is the kernel's word (SO_PEERCRED), never the caller's. Nothing here blocks, and every descriptor that arrives is
either handed on or closed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from array import array
from collections import deque
from typing import NamedTuple

import msgspec
from gpuwatch_hooks import wire

from gpuwatch.intake.descriptors import close_all
from gpuwatch.state.identity import Identity

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
#: Replies that may wait for a peer which does not read; one further behind is not a peer.
MAX_WAITING_REPLIES = 16
#: Room for more descriptors than the one that a message may carry, to tell two from one; the kernel closes the rest.
_ANCILLARY_BYTES = socket.CMSG_SPACE(4 * array("i").itemsize)
_encode = msgspec.json.Encoder().encode


class Received(NamedTuple):
    """One message with the descriptors that came along, which now belong to whoever holds this."""

    data: bytes
    fds: list[int]


class PeerError(Exception):
    """A peer that broke the rules of the socket, or left. The text is a reason that fits in a counter's label."""


def identify(connection: socket.socket) -> Identity:
    """The calling process as the kernel names it. `pid` is 0 when it lives in a pid namespace that we cannot see."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _gid = _CREDENTIALS.unpack(raw)
    return Identity(uid, pid, start_ticks(pid))


def start_ticks(pid: int) -> int:
    """When process `pid` started, in clock ticks since boot; 0 when there is no such process to be seen.

    Raises OSError for a fault of our own, such as no descriptor left: that must not pass for another identity.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command in the second field may hold blanks and parentheses: count from the last one.
            return int(file.read().rpartition(b")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError, PermissionError, IndexError, ValueError):
        return 0


def namespace_pid(pid: int) -> int:
    """The pid of process `pid` in its own, innermost namespace; 0 when it cannot be told."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            line = next((line for line in file if line.startswith(b"NSpid:")), b"")
        return int(line.split()[-1]) if line else 0
    except (OSError, ValueError):
        return 0


class Peer:
    """A connection, from accept to close."""

    def __init__(self, connection: socket.socket, accepted_ns: int) -> None:
        self.connection = connection
        self.accepted_ns = accepted_ns
        self.identity = identify(connection)
        self._waiting: deque[bytes] = deque()
        self._ack = 0  # the number to acknowledge; only the newest matters
        self._ack_sent = 0

    def fileno(self) -> int:
        return self.connection.fileno()

    def receive(self, buffer: bytearray) -> Received | None:
        """The next message, or None when there is none yet. `buffer`: scratch of more than wire.MAX_MESSAGE_BYTES bytes.

        Raises PeerError when the peer has left or sent what no message may be.
        """
        fds = array("i")
        try:
            size, ancillary, flags, _ = self._receive(buffer)
        except BlockingIOError:
            return None
        except OSError:
            raise PeerError("gone") from None
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        received = Received(bytes(memoryview(buffer)[:size]), list(fds))
        reason = ""
        if flags & socket.MSG_TRUNC or size > wire.MAX_MESSAGE_BYTES:
            reason = "oversized_message"
        elif flags & socket.MSG_CTRUNC or len(fds) > 1:
            reason = "too_many_descriptors"
        elif size == 0:  # the end; an empty message looks the same, and means nothing
            reason = "gone"
        if reason:
            close_all(received.fds)
            raise PeerError(reason)
        return received

    def _receive(self, buffer: bytearray) -> tuple[int, list[tuple[int, int, bytes]], int, object]:
        try:
            return self.connection.recvmsg_into([buffer], _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            # Said once, when the peer died without having read all that we sent; what it sent itself is still to be had.
            return self.connection.recvmsg_into([buffer], _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)

    def send(self, message: dict[str, object]) -> None:
        """Say `message`, now or when the peer reads again. Raises PeerError."""
        if len(self._waiting) >= MAX_WAITING_REPLIES:
            raise PeerError("does_not_read")
        self._waiting.append(_encode(message))
        self.flush()

    def acknowledge(self, n: int) -> None:
        """Everything up to message `n` is durable; a later number replaces one that still waits."""
        if n > self._ack:
            self._ack = n
            self.flush()

    def flush(self) -> bool:
        """Send what waits; True when nothing does any more, also since the peer has gone (what it said last can be read)."""
        try:
            while self._waiting:
                self.connection.send(self._waiting[0])
                self._waiting.popleft()
            if self._ack > self._ack_sent:
                self.connection.send(_encode({"t": "ack", "n": self._ack}))
                self._ack_sent = self._ack
        except BlockingIOError:
            return False
        except OSError:
            self._waiting.clear()
            self._ack_sent = self._ack
        return True

    def refuse(self, reason: str) -> None:
        """Tell the peer why it is being sent away; the caller closes."""
        with contextlib.suppress(OSError):
            self.connection.send(_encode({"t": "refuse", "reason": reason}))

    def close(self) -> None:
        self.connection.close()


def open_pidfd(identity: Identity) -> int:
    """A descriptor that becomes readable when the process ends; -1 when it has gone or is not ours to see."""
    if identity.pid <= 0:
        return -1
    try:
        pidfd = os.pidfd_open(identity.pid)
    except OSError:
        return -1
    if start_ticks(identity.pid) != identity.start_ticks:  # the pid has been given to somebody else meanwhile
        os.close(pidfd)
        return -1
    return pidfd
