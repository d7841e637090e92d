import http.client
import socket
import struct
import threading
import time

import msgspec
import pytest

from gpuwatch.config import Config
from gpuwatch.exporters.http import HttpServer, Response
from gpuwatch.exporters.listening import ListenError

LARGE = b"x" * (8 << 20)


def fail(_):
    raise RuntimeError("on purpose")


ROUTES = {
    "/": lambda _: Response(b"hello\n"),
    "/large": lambda _: Response(LARGE),
    "/fails": fail,
}


def configured(**settings):
    config = Config()
    return msgspec.structs.replace(config, prometheus=msgspec.structs.replace(config.prometheus, **settings))


@pytest.fixture
def serve():
    servers = []

    def start(config=None, address=("127.0.0.1", 0), **more):
        server = HttpServer(config or configured(), address, ROUTES, **more)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


def ask(server, method="GET", path="/", **headers):
    connection = http.client.HTTPConnection(*server.address, timeout=10)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def silent(server):
    return socket.create_connection(server.address, timeout=10)


def read_all(sock):
    data = b""
    while piece := sock.recv(1 << 16):
        data += piece
    return data


def test_an_answer_with_its_headers(serve):
    response, body = ask(serve())
    assert (response.status, body) == (200, b"hello\n")
    assert response.getheader("X-Content-Type-Options") == "nosniff"
    assert "default-src 'none'" in response.getheader("Content-Security-Policy")
    policy = response.getheader("Content-Security-Policy")
    assert "frame-ancestors 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert response.getheader("Cache-Control") == "no-store"
    assert response.getheader("Access-Control-Allow-Origin") is None
    assert response.getheader("Connection") == "close"


def test_head_has_the_length_and_no_body(serve):
    with silent(serve()) as sock:
        sock.sendall(b"HEAD /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head, _, rest = read_all(sock).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(LARGE)}".encode() in head
    assert rest == b""


def test_a_body_larger_than_the_sockets_buffers_arrives_whole(serve):
    _, body = ask(serve(), path="/large")
    assert body == LARGE


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_changes_anything(serve, method):
    response, _ = ask(serve(), method)
    assert response.status == 405
    assert response.getheader("Allow") == "GET, HEAD"


def test_a_posted_body_does_not_cost_the_client_its_answer(serve):
    connection = http.client.HTTPConnection(*serve().address, timeout=10)
    connection.request("POST", "/", body=LARGE)
    assert connection.getresponse().status == 405
    connection.close()


def test_a_rebound_name_is_refused(serve):
    assert ask(serve(), Host="evil.example")[0].status == 403


def test_a_configured_name_is_served(serve):
    server = serve(configured(allowed_hosts=["node7"]))
    assert ask(server, Host="node7:9877")[0].status == 200
    assert ask(server, Host="node8:9877")[0].status == 403


def test_an_unknown_path(serve):
    assert ask(serve(), path="/../etc/passwd")[0].status == 404


def test_a_page_that_fails_is_a_500_and_the_next_one_works(serve):
    server = serve()
    assert ask(server, path="/fails")[0].status == 500
    assert ask(server)[0].status == 200


def test_a_head_without_end_is_cut_off(serve):
    with silent(serve()) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 2000)
        assert b" 431 " in read_all(sock)


def test_seventeen_connections(serve):
    server = serve()
    first = [silent(server) for _ in range(16)]
    with silent(server) as one_too_many:
        assert b" 503 " in read_all(one_too_many)
    first[0].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b" 200 " in read_all(first[0])  # those that are in are served
    for sock in first:
        sock.close()
    deadline = time.monotonic() + 10
    while ask(server)[0].status != 200:  # and their places are free again when they have gone
        assert time.monotonic() < deadline


def test_hundreds_of_silent_connections_take_no_thread_and_end(serve):
    server = serve(configured(timeout_seconds=0.5))
    before = threading.active_count()
    crowd = [silent(server) for _ in range(300)]
    assert threading.active_count() <= before  # one of an earlier test may end meanwhile
    deadline = time.monotonic() + 10
    status = 503
    while status != 200:
        assert time.monotonic() < deadline
        try:
            status = ask(server)[0].status
        except (ConnectionError, http.client.HTTPException):
            status = 503  # turned away without a word
    for sock in crowd:
        sock.close()


def test_a_slow_request_is_ended_by_the_clock(serve):
    server = serve(configured(timeout_seconds=0.5))
    with silent(server) as sock:
        began = time.monotonic()
        sock.settimeout(10)
        stop = threading.Event()

        def drip():
            while not stop.wait(0.05):
                try:
                    sock.send(b"A")  # always a byte in time for a timeout that each byte renews
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            answer = sock.recv(1 << 16)
        finally:
            stop.set()
            thread.join()
        assert b" 408 " in answer
        assert time.monotonic() - began < 5


def test_a_client_that_does_not_read_is_dropped(serve):
    server = serve(configured(timeout_seconds=0.5, connections=1))
    with silent(server) as sock:
        sock.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        deadline = time.monotonic() + 10
        while ask(server)[0].status != 200:  # the one place is free again
            assert time.monotonic() < deadline


def test_a_reset_in_the_middle_harms_nobody(serve):
    server = serve()
    for _ in range(20):
        sock = silent(server)
        sock.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    assert ask(server)[0].status == 200


def test_the_port_is_taken(serve):
    server = serve()
    with pytest.raises(ListenError, match=r"the port is in use.*--listen"):
        HttpServer(configured(), server.address, ROUTES)


def test_an_address_that_is_not_ours():
    with pytest.raises(ListenError, match="cannot listen on"):
        HttpServer(configured(allow_remote=True), ("192.0.2.1", 0), ROUTES)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1"])
def test_more_than_loopback_is_refused_with_a_way_out(address):
    with pytest.raises(ListenError, match=r"no TLS and no password.*ssh -L.*allow_remote"):
        HttpServer(configured(), (address, 9), ROUTES)


def test_remote_when_it_is_asked_for(serve):
    server = serve(configured(allow_remote=True), ("0.0.0.0", 0))
    assert ask(server, Host="10.9.8.7:9877")[0].status == 200
    assert ask(server, Host=f"{socket.gethostname()}:9877")[0].status == 200
    assert ask(server, Host="evil.example")[0].status == 403


def test_a_sign_of_life_about_once_a_second(serve):
    beats = threading.Semaphore(0)
    serve(on_turn=beats.release)
    assert beats.acquire(timeout=10)
    assert beats.acquire(timeout=10)


def test_stop_closes_what_is_open():
    server = HttpServer(configured(), ("127.0.0.1", 0), ROUTES)
    server.start()
    sock = silent(server)
    server.stop()
    assert read_all(sock) == b""
    sock.close()
    with pytest.raises(ConnectionRefusedError):
        silent(server)


def test_stop_without_start():
    HttpServer(configured(), ("127.0.0.1", 0), ROUTES).stop()
