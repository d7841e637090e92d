"""A small HTTP server for people and Prometheus on this node: read-only, bounded, one thread.

One thread and non-blocking sockets instead of a thread for each connection: silence, slowness and numbers then cost a slot
of a table, and nothing else. Every response closes its connection. `http.server` would bring 5 MiB of modules (ssl and
email among them) into a daemon of 25, and still need all of this around it.

Event streams have places of their own, so that pages left open take none from Prometheus. An event is made once a second
for all who listen, and not at all while nobody does; one who reads too slowly misses events, and is dropped after the timeout.
"""

from __future__ import annotations

import errno
import logging
import math
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from gpuwatch.exporters.listening import bracketed, is_loopback, listen
from gpuwatch.exporters.request import END_OF_HEAD, MAX_HEAD_BYTES, HostRule, RefusedRequestError, Request, parse

if TYPE_CHECKING:
    from gpuwatch.config import Config

_log = logging.getLogger(__name__)

_REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_SECURITY = (
    "X-Content-Type-Options: nosniff\r\n"
    "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'\r\n"
    "Cross-Origin-Resource-Policy: same-origin\r\n"
    "Referrer-Policy: no-referrer\r\n"
    "Cache-Control: no-store\r\n"
)
#: How long a client may take to hear that we are done; it still holds its slot then.
_LINGER_SECONDS = 1.0
#: Connections beyond the limit that are told so, at the same time; others are closed without a word.
_TURNED_AWAY = 16
EVENT_STREAM = "text/event-stream; charset=utf-8"
#: Event streams at the same time. A browser keeps six connections to one host, so one browser alone cannot take them all.
MAX_STREAMS = 8
EVERY_SECONDS = 1.0


class Response(NamedTuple):
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    events: Callable[[], bytes] | None = None  # a stream: `body` is its beginning, and this makes what follows each second


Handler = Callable[[Request], Response]


class _Connection:
    __slots__ = ("answering", "deadline", "events", "received", "sending", "sock", "turned_away")

    def __init__(self, sock: socket.socket, deadline: float, *, turned_away: bool) -> None:
        self.sock = sock
        self.deadline = deadline  # time.monotonic()
        self.received = bytearray()
        self.sending = memoryview(b"")
        self.answering = False
        self.turned_away = turned_away
        self.events: Callable[[], bytes] | None = None  # set: an event stream, which stays open


class HttpServer:
    """Serves `routes` (path -> handler) from a thread of its own; the socket is bound when the object is made.

    `on_turn` is called about once a second, from the thread: a sign of life. Raises ListenError when the address is taken, or
    is not of this machine alone and `config.prometheus.allow_remote` does not say that it may be.
    """

    def __init__(
        self,
        config: Config,
        address: tuple[str, int],
        routes: Mapping[str, Handler],
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        self._routes = dict(routes)
        self._limit = config.prometheus.connections
        self._timeout_seconds = config.prometheus.timeout_seconds
        self._on_turn = on_turn
        self._listener = listen(address, allow_remote=config.prometheus.allow_remote)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        names = [*config.prometheus.allowed_hosts, bracketed(address[0])]
        if not is_loopback(self.address[0]):
            names.append(socket.gethostname())
        self._host_allowed = HostRule(names, any_address=not is_loopback(self.address[0]))
        self._connections: set[_Connection] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="gpuwatch-http", daemon=True)

    @property
    def url(self) -> str:
        return f"http://{bracketed(self.address[0])}:{self.address[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_seconds: float = 2.0) -> None:
        """Ends the thread and closes everything; also for a server that was never started."""
        self._stopping = True
        self._wake_write.send(b"x")
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)
        self._wake_write.close()
        if not self._thread.is_alive():
            for connection in list(self._connections):
                self._drop(connection)
            self._selector.close()
            self._listener.close()
            self._wake_read.close()

    def _run(self) -> None:
        next_turn = 0.0
        while not self._stopping:
            try:
                now = time.monotonic()
                if now >= next_turn:
                    self._on_turn()
                    self._publish()
                    next_turn = now + EVERY_SECONDS
                self._turn(max(0.0, min([next_turn - now, *(c.deadline - now for c in self._connections)])))
            except Exception:  # noqa: BLE001  # a bug may neither end the thread nor spin it
                _log.exception("HTTP: a turn failed")
                time.sleep(0.1)

    def _turn(self, timeout_seconds: float) -> None:
        for key, _ in self._selector.select(timeout_seconds):
            if isinstance(key.data, _Connection):
                try:
                    self._serve(key.data)
                except OSError:
                    self._drop(key.data)
            elif key.fileobj is self._listener:
                self._accept()
        now = time.monotonic()
        for connection in [c for c in self._connections if c.deadline <= now]:
            if connection.answering:
                self._drop(connection)
            else:
                self._answer(connection, Response(b"the request did not arrive in time\n", status=408))

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                time.sleep(0.05)  # the backlog stays readable: without a pause this would spin
            return
        sock.setblocking(False)
        turned_away = sum(c.turned_away for c in self._connections)
        full = len(self._connections) - turned_away - len(self._streams()) >= self._limit
        if full and turned_away >= _TURNED_AWAY:
            sock.close()
            return
        connection = _Connection(sock, time.monotonic() + self._timeout_seconds, turned_away=full)
        self._connections.add(connection)
        self._selector.register(sock, selectors.EVENT_READ, connection)
        if full:
            self._answer(connection, Response(b"too many connections\n", status=503))

    def _serve(self, connection: _Connection) -> None:
        if connection.sending:
            self._send(connection)
            return
        data = connection.sock.recv(16384)
        if not data:
            self._drop(connection)
        elif not connection.answering:
            connection.received += data
            end = connection.received.find(END_OF_HEAD)
            if end > MAX_HEAD_BYTES or (end < 0 and len(connection.received) > MAX_HEAD_BYTES):
                self._answer(connection, Response(b"the request's head is too large\n", status=431))
            elif end >= 0:
                head = bytes(connection.received[:end])
                head_only = head.startswith(b"HEAD ")
                response = self._respond(head)
                if response.events is not None and not head_only and len(self._streams()) >= MAX_STREAMS:
                    response = Response(
                        b"as many pages as there is room for follow already: ask now and then instead\n", status=503
                    )
                self._answer(connection, response, head_only=head_only)

    def _respond(self, head: bytes) -> Response:
        try:
            request = parse(head, self._host_allowed)
        except RefusedRequestError as refused:
            return Response(f"{refused}\n".encode(), status=refused.status)
        handler = self._routes.get(request.path)
        if handler is None:
            return Response(b"not found\n", status=404)
        try:
            return handler(request)
        except Exception:  # noqa: BLE001  # a page that fails is a 500, not the end of the server
            _log.exception("HTTP: %s failed", request.path)
            return Response(b"this failed; the daemon's log says why\n", status=500)

    def _answer(self, connection: _Connection, response: Response, *, head_only: bool = False) -> None:
        allow = "Allow: GET, HEAD\r\n" if response.status == 405 else ""
        length = "" if response.events is not None else f"Content-Length: {len(response.body)}\r\n"
        head = (
            f"HTTP/1.1 {response.status} {_REASONS[response.status]}\r\nContent-Type: {response.content_type}\r\n"
            f"{length}Connection: close\r\n{allow}{_SECURITY}\r\n"
        )
        connection.answering = True
        connection.events = None if head_only else response.events
        connection.sending = memoryview(head.encode() + (b"" if head_only else response.body))
        connection.deadline = time.monotonic() + self._timeout_seconds
        try:
            self._send(connection)
        except OSError:
            self._drop(connection)

    def _send(self, connection: _Connection) -> None:
        try:
            sent = connection.sock.send(connection.sending)
        except BlockingIOError:
            sent = 0
        connection.sending = connection.sending[sent:]
        if connection.sending:
            self._selector.modify(connection.sock, selectors.EVENT_WRITE, connection)
            return
        if connection.events is not None:
            connection.deadline = math.inf  # nothing is owed to it until the next event
            self._selector.modify(connection.sock, selectors.EVENT_READ, connection)
            return
        # Closing with unread input would make the kernel reset the connection, and the client lose the answer: so we say
        # that we are done and wait, not for long, until the client has hung up.
        connection.sock.shutdown(socket.SHUT_WR)
        connection.deadline = time.monotonic() + _LINGER_SECONDS
        self._selector.modify(connection.sock, selectors.EVENT_READ, connection)

    def _streams(self) -> list[_Connection]:
        return [connection for connection in self._connections if connection.events is not None]

    def _publish(self) -> None:
        """The next event to everybody who has read the one before."""
        made: dict[Callable[[], bytes], memoryview] = {}
        for connection in self._streams():
            if connection.sending or connection.events is None:
                continue
            try:
                if connection.events not in made:
                    made[connection.events] = memoryview(connection.events())
                connection.sending = made[connection.events]
                connection.deadline = time.monotonic() + self._timeout_seconds
                self._send(connection)
            except OSError:
                self._drop(connection)
            except Exception:  # noqa: BLE001  # an event that cannot be made ends the streams, not the server
                _log.exception("HTTP: an event could not be made")
                self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._selector.unregister(connection.sock)
        connection.sock.close()
