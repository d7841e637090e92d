"""Event streams of the HTTP server: live, made once for all, with places of their own, and nothing while nobody listens."""

import contextlib
import re
import socket
import time

import pytest

from gpuwatch.exporters import http
from gpuwatch.exporters.http import EVENT_STREAM, MAX_STREAMS, HttpServer, Response
from tests.exporters.test_http import ask, configured, read_all, silent
from tests.running_daemon import wait_until

HEAD = b" HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Events:
    """Counts how often an event was made; `size` bytes each."""

    def __init__(self, size=0):
        self.made = 0
        self.padding = b"x" * size

    def __call__(self):
        self.made += 1
        return b"data: %d%s\n\n" % (self.made, self.padding)


@pytest.fixture
def serve(monkeypatch):
    servers = []
    monkeypatch.setattr(http, "EVERY_SECONDS", 0.1)

    def start(events, **settings):
        routes = {
            "/": lambda _: Response(b"hello\n"),
            "/events": lambda _: Response(b"data: first\n\n", EVENT_STREAM, events=events),
        }
        server = HttpServer(configured(**settings), ("127.0.0.1", 0), routes)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


class Listener:
    """Somebody who follows, and has seen the stream begin."""

    def __init__(self, server, method=b"GET"):
        self.sock = socket.create_connection(server.address, timeout=10)
        self.sock.sendall(method + b" /events" + HEAD)
        self.heard = b""
        self.until(b"\r\n\r\n")
        self.status = int(self.heard.split()[1])
        if self.status == 200 and method == b"GET":
            self.until(b"first")

    def until(self, words):
        while words not in self.heard:
            piece = self.sock.recv(1 << 16)
            if not piece:
                break
            self.heard += piece
        return self.heard

    def close(self):
        self.sock.close()


@contextlib.contextmanager
def listeners(server, count):
    found = [Listener(server) for _ in range(count)]
    yield found
    for each in found:
        each.close()


def test_a_stream_begins_at_once_and_goes_on(serve):
    events = Events()
    with listeners(serve(events), 1) as (one,):
        head = one.heard.partition(b"\r\n\r\n")[0].lower()
        assert b"content-type: text/event-stream" in head
        assert b"content-length" not in head
        assert b"cache-control: no-store" in head
        assert b"data: 3\n\n" in one.until(b"data: 3\n\n")


def test_an_event_is_made_once_for_all_who_listen(serve):
    events = Events()
    server = serve(events)
    with listeners(server, 4) as all_of_them:
        for each in all_of_them:
            numbers = [int(number) for number in re.findall(rb"data: (\d+)\n\n", each.until(b"data: 9\n\n"))]
            assert len(numbers) >= 3
            assert numbers == list(range(numbers[0], numbers[-1] + 1)), "made for each of them, every fourth would be heard"


def test_nothing_is_made_while_nobody_listens(serve):
    events = Events()
    turns = []
    server = serve(events)
    server._on_turn = lambda: turns.append(events.made)
    wait_until(lambda: len(turns) >= 3)
    assert events.made == 0
    with listeners(server, 1) as (one,):
        one.until(b"data: 2\n\n")
    wait_until(lambda: not server._streams())
    made, seen = events.made, len(turns)
    wait_until(lambda: len(turns) >= seen + 3)
    assert events.made == made > 0


def test_a_ninth_is_told_so_and_the_places_for_requests_are_all_free(serve):
    events = Events()
    server = serve(events, connections=2)
    with listeners(server, MAX_STREAMS) as all_of_them:
        ninth = Listener(server)
        assert ninth.status == 503
        assert b"ask now and then" in ninth.until(b"instead")
        ninth.close()
        with silent(server) as taken:
            assert ask(server)[0].status == 200, "eight streams and a silent one leave the second place"
            taken.close()
        all_of_them[0].close()

        def admitted():
            again = Listener(server)
            again.close()
            return again.status == 200

        wait_until(admitted)


def test_a_request_has_no_place_of_a_stream(serve):
    server = serve(Events(), connections=2)
    with listeners(server, 3), silent(server), silent(server), silent(server) as third:
        assert b" 503 " in read_all(third)


def test_head_of_a_stream_ends(serve):
    server = serve(Events())
    one = Listener(server, b"HEAD")
    assert one.sock.recv(1 << 16) == b""
    assert not server._streams()
    one.close()


def test_who_reads_slowly_misses_events_and_is_dropped(serve):
    events = Events(size=4 << 20)
    server = serve(events, timeout_seconds=1.5)
    with listeners(server, 2) as (slow, quick):
        quick.until(b"data: 2x")
        quick.sock.settimeout(20)

        def alone():
            quick.heard = quick.sock.recv(1 << 20)
            return len(server._streams()) <= 1

        wait_until(alone)
        assert ask(server)[0].status == 200
        slow.sock.settimeout(10)
        left = sum(len(piece) for piece in iter(lambda: slow.sock.recv(1 << 20), b""))
        assert left < 4 << 20, "at most what the sockets' buffers held: nothing is queued for it"


def test_a_stream_outlives_the_timeout_of_a_request(serve):
    with listeners(serve(Events(), timeout_seconds=0.5), 1) as (one,):
        one.until(b"data: 4\n\n")
        assert one.heard.count(b"data: ") >= 5


def test_an_event_that_cannot_be_made_ends_the_stream_not_the_server(serve):
    def fail():
        raise RuntimeError("on purpose")

    server = serve(fail)
    with listeners(server, 1) as (one,):
        assert one.sock.recv(1 << 16) == b""
    assert ask(server)[0].status == 200


def test_stop_ends_streams():
    beginning = Response(b"data: first\n\n", EVENT_STREAM, events=Events())
    server = HttpServer(configured(), ("127.0.0.1", 0), {"/events": lambda _: beginning})
    server.start()
    with listeners(server, 1) as (one,):
        server.stop()
        deadline = time.monotonic() + 10
        while one.sock.recv(1 << 16):
            assert time.monotonic() < deadline
