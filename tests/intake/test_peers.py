"""One connection: the kernel's word about who calls, messages of every kind of wrong, and descriptors that never stay."""

import os
import socket
import subprocess
import sys
import time

import pytest
from gpuwatch_hooks import wire

from gpuwatch.intake.peers import MAX_WAITING_REPLIES, Peer, PeerError, namespace_pid, open_pidfd, start_ticks
from gpuwatch.state.identity import Identity


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    peer = Peer(ours, time.monotonic_ns())
    yield peer, theirs
    peer.close()
    theirs.close()


@pytest.fixture
def buffer():
    return bytearray(wire.MAX_MESSAGE_BYTES + 1)


@pytest.fixture(autouse=True)
def no_descriptor_stays():
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_identity_is_the_kernels(pair):
    peer, _ = pair
    assert peer.identity == Identity(os.getuid(), os.getpid(), start_ticks(os.getpid()))
    assert peer.identity.start_ticks > 0


def test_identity_of_a_process_whose_name_tries_to_confuse(tmp_path):
    """The command stands in parentheses in /proc/PID/stat, and may itself be `) R 1 1 1 1`."""
    program = tmp_path / ") R 1 2 3"
    os.symlink(sys.executable, program)
    process = subprocess.Popen([str(program), "-c", "import time; time.sleep(60)"])
    try:
        ticks = start_ticks(process.pid)
        seconds = ticks / os.sysconf("SC_CLK_TCK")
        with open("/proc/uptime") as file:
            uptime = float(file.read().split()[0])
        assert 0 <= uptime - seconds < 30
    finally:
        process.kill()
        process.wait(10)


def test_a_process_that_is_not_there():
    assert start_ticks(0) == 0
    assert start_ticks(1 << 30) == 0
    assert namespace_pid(1 << 30) == 0
    assert open_pidfd(Identity(0, 0, 0)) == -1
    assert open_pidfd(Identity(0, 1 << 30, 0)) == -1


def test_a_pid_that_was_given_to_somebody_else_is_not_watched():
    assert open_pidfd(Identity(0, os.getpid(), 1)) == -1


def test_namespace_pid_is_the_innermost():
    assert namespace_pid(os.getpid()) == os.getpid()


def test_message_with_a_descriptor(pair, buffer):
    peer, theirs = pair
    with open("/dev/null", "rb") as file:
        socket.send_fds(theirs, [b"hello"], [file.fileno()])
    received = peer.receive(buffer)
    assert received.data == b"hello"
    (fd,) = received.fds
    assert os.get_inheritable(fd) is False
    os.close(fd)
    assert peer.receive(buffer) is None


def test_the_largest_message_and_one_byte_more(pair, buffer):
    peer, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    theirs.send(b"x" * wire.MAX_MESSAGE_BYTES)
    assert len(peer.receive(buffer).data) == wire.MAX_MESSAGE_BYTES
    theirs.send(b"x" * (wire.MAX_MESSAGE_BYTES + 1))
    with pytest.raises(PeerError, match="oversized_message"):
        peer.receive(buffer)
    theirs.send(b"x" * 150_000)
    with pytest.raises(PeerError, match="oversized_message"):
        peer.receive(buffer)


@pytest.mark.parametrize("count", [2, 4, 5, 100, 253])
def test_a_bomb_of_descriptors_leaves_none_open(pair, buffer, count):
    peer, theirs = pair
    before = open_descriptors()
    with open("/dev/null", "rb") as file:
        socket.send_fds(theirs, [b"hello"], [file.fileno()] * count)
    with pytest.raises(PeerError, match="too_many_descriptors"):
        peer.receive(buffer)
    assert open_descriptors() == before


def test_descriptors_with_an_oversized_message_are_closed(pair, buffer):
    peer, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    before = open_descriptors()
    with open("/dev/null", "rb") as file:
        socket.send_fds(theirs, [b"x" * 100_000], [file.fileno()])
    with pytest.raises(PeerError):
        peer.receive(buffer)
    assert open_descriptors() == before


def test_descriptors_with_an_empty_message_are_closed(pair, buffer):
    peer, theirs = pair
    before = open_descriptors()
    with open("/dev/null", "rb") as file:
        socket.send_fds(theirs, [b""], [file.fileno()])
    with pytest.raises(PeerError, match="gone"):
        peer.receive(buffer)
    assert open_descriptors() == before


def test_the_end(pair, buffer):
    peer, theirs = pair
    theirs.send(b"last")
    theirs.close()
    assert peer.receive(buffer).data == b"last"
    with pytest.raises(PeerError, match="gone"):
        peer.receive(buffer)


@pytest.mark.parametrize("we_speak_first", [False, True])
def test_last_words_are_heard_of_a_peer_that_had_not_read_ours(pair, buffer, we_speak_first):
    """Such a peer's death resets the connection: once, and in front of what it had sent."""
    peer, theirs = pair
    peer.send({"t": "welcome"})
    theirs.send(b"last words")
    theirs.close()
    if we_speak_first:
        peer.acknowledge(5)
    assert peer.receive(buffer).data == b"last words"
    with pytest.raises(PeerError, match="gone"):
        peer.receive(buffer)


def test_acknowledgements_merge_while_the_peer_does_not_read(pair, buffer):
    peer, theirs = pair
    n = 0
    while peer.flush() and n < 100_000:
        n += 1
        peer.acknowledge(n)
    assert n < 100_000
    for later in range(n + 1, n + 1000):
        peer.acknowledge(later)
    theirs.setblocking(False)
    heard = []
    while True:
        try:
            heard.append(theirs.recv(4096))
        except BlockingIOError:
            if peer.flush() and heard[-1:] != [b'{"t":"ack","n":%d}' % (n + 999)]:
                continue
            break
    assert heard[-1] == b'{"t":"ack","n":%d}' % (n + 999)
    assert len(heard) < n + 20


def test_replies_to_a_peer_that_does_not_read_are_bounded(pair):
    peer, _ = pair

    def send_without_end():
        for _ in range(100_000):
            peer.send({"t": "set"})

    with pytest.raises(PeerError, match="does_not_read"):
        send_without_end()
    assert len(peer._waiting) == MAX_WAITING_REPLIES
