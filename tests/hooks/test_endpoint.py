"""Where a daemon is looked for, and whom the ring is given to."""

import os
import socket
import subprocess
import sys

import pytest
from gpuwatch_hooks import endpoint

LISTENS_AS = """
import os, socket, sys
path, uid = sys.argv[1], int(sys.argv[2])
os.setgid(uid)
os.setuid(uid)
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(path)
os.chmod(path, 0o777)
listener.listen()
print("listening", flush=True)
connection, _ = listener.accept()
received, fds, _, _ = socket.recv_fds(connection, 65536, 4)
print("got %d bytes and %d descriptors" % (len(received), len(fds)), flush=True)
"""


@pytest.fixture
def listen_as(tmp_path):
    """A real listener at a path, under another uid: the way a stranger would sit on it."""
    if os.getuid() != 0:
        pytest.skip("needs root to listen as another user")
    folder = tmp_path / "open"
    folder.mkdir()
    for parent in (folder, *[parent for parent in folder.parents if len(parent.parts) > 2]):  # but /tmp
        parent.chmod(0o777)
    alive = []

    def listen(uid):
        path = folder / f"{uid}.sock"
        command = [sys.executable, "-S", "-c", LISTENS_AS, str(path), str(uid)]
        alive.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        assert alive[-1].stdout.readline() == "listening\n", alive[-1].stderr.read()
        return str(path), alive[-1]

    yield listen
    for process in alive:
        process.kill()
        process.communicate(timeout=20)


def test_a_stranger_gets_nothing(listen_as):
    path, stranger = listen_as(4711)
    with pytest.raises(endpoint.UntrustedError, match="4711"):
        endpoint.connect(path)
    assert stranger.stdout.readline() == "got 0 bytes and 0 descriptors\n"


def test_the_owner_of_the_system_folder_is_trusted(listen_as, tmp_path, monkeypatch):
    owned = tmp_path / "run"
    owned.mkdir()
    os.chown(owned, 4711, 4711)
    monkeypatch.setattr(endpoint, "SYSTEM_FOLDER", str(owned))
    path, _ = listen_as(4711)
    endpoint.connect(path).close()
    path, _ = listen_as(4712)
    with pytest.raises(endpoint.UntrustedError):
        endpoint.connect(path)


def test_where_a_daemon_is_looked_for(monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setenv("HOME", "/home/u")
    places = ["/run/gpuwatch/gpuwatch.sock", "/run/user/7/gpuwatch/gpuwatch.sock", "/home/u/.cache/gpuwatch/run/gpuwatch.sock"]
    assert endpoint.candidates() == places
    assert endpoint.candidates("/elsewhere") == ["/elsewhere"]
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert endpoint.candidates() == [places[0], places[2]]


def test_the_first_that_answers_is_taken(tmp_path, monkeypatch):
    """A daemon of the system that has gone leaves its path behind; the user's own answers."""
    monkeypatch.setattr(endpoint, "SYSTEM_FOLDER", str(tmp_path / "system"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "user"))
    (tmp_path / "system").mkdir()
    (tmp_path / "user" / "gpuwatch").mkdir(parents=True)
    left_behind = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left_behind.bind(str(tmp_path / "system" / "gpuwatch.sock"))
    left_behind.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "user" / "gpuwatch" / "gpuwatch.sock"))
        listener.listen()
        connection = endpoint.connect()
        assert connection.getpeername().endswith("user/gpuwatch/gpuwatch.sock")
        connection.close()


def test_no_daemon_is_an_os_error_and_leaves_no_descriptor(tmp_path):
    before = os.listdir("/proc/self/fd")
    for path in (tmp_path / "none", tmp_path, tmp_path / ("x" * 200)):
        with pytest.raises(OSError):
            endpoint.connect(str(path))
    assert os.listdir("/proc/self/fd") == before
