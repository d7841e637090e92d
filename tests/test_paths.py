"""Where the socket is: the same answers as the hooks', who look for it from the other side."""

import os
import socket
from pathlib import Path

import pytest
from gpuwatch_hooks import endpoint

from gpuwatch import paths


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """An ordinary user on a node without a system daemon."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(paths, "SYSTEM_DIRECTORY", tmp_path / "run-gpuwatch")
    return tmp_path


def test_what_is_said_wins(nobody):
    for place in (paths.socket_to_bind, paths.socket_to_call):
        assert place("/flag", {"GPUWATCH_SOCKET": "/env"}) == Path("/flag")
        assert place("", {"GPUWATCH_SOCKET": "/env"}) == Path("/env")
        assert place("relative.sock", {}) == Path.cwd() / "relative.sock"


def test_a_users_places(nobody):
    assert paths.socket_to_bind("", {"XDG_RUNTIME_DIR": "/run/user/7"}) == Path("/run/user/7/gpuwatch/gpuwatch.sock")
    assert paths.socket_to_bind("", {"HOME": "/home/u"}) == Path("/home/u/.cache/gpuwatch/run/gpuwatch.sock")
    assert paths.socket_to_call("", {"HOME": "/home/u"}) == Path("/home/u/.cache/gpuwatch/run/gpuwatch.sock")


def test_without_a_home(nobody, monkeypatch):
    """A container's uid may have none, and no entry in /etc/passwd."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert paths.socket_to_bind("", {}) == Path("/run/user/1000/gpuwatch/gpuwatch.sock")
    assert [str(paths.user_socket({}))] == endpoint.candidates()[1:]


def test_the_hooks_look_in_the_same_places(nobody, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setenv("HOME", "/home/u")
    places = [Path(place) for place in endpoint.candidates()]
    assert paths.user_socket() in places
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert paths.user_socket() == Path(endpoint.candidates()[-1])
    assert endpoint.SYSTEM_FOLDER == "/run/gpuwatch"


def test_the_nodes_own_daemon(nobody, monkeypatch):
    folder = nobody / "run-gpuwatch"
    folder.mkdir()
    assert paths.socket_to_bind("", {"HOME": "/h"}) == folder / "gpuwatch.sock"
    assert paths.socket_to_call("", {"HOME": "/h"}) == Path("/h/.cache/gpuwatch/run/gpuwatch.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(folder / "gpuwatch.sock"))
        listening.listen()
        assert paths.socket_to_call("", {"HOME": "/h"}) == folder / "gpuwatch.sock"


def test_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert paths.socket_to_bind("", {}) == Path("/run/gpuwatch/gpuwatch.sock")
    assert paths.socket_to_call("", {}) == Path("/run/gpuwatch/gpuwatch.sock")


def test_never_in_tmp_and_never_abstract(nobody):
    for environ in ({}, {"HOME": "/h"}, {"XDG_RUNTIME_DIR": "/run/user/1"}, {"TMPDIR": "/tmp"}):
        path = str(paths.user_socket({"HOME": "/h", **environ}))
        assert path.startswith("/")
        assert not path.startswith("/tmp")
