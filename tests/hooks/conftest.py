"""Sessions and daemons that leave nothing behind."""

import os

import pytest
from gpuwatch_hooks import notices, session

from tests.hooks.daemon_peer import DaemonPeer


@pytest.fixture
def socket_path(tmp_path, monkeypatch):
    """Where this test's daemon listens, and where the hooks will look for it."""
    path = tmp_path / "gpuwatch.sock"
    monkeypatch.setenv("GPUWATCH_SOCKET", str(path))
    return path


@pytest.fixture
def make_daemon(socket_path):
    """Start a DaemonPeer at the socket's path; several in a row stand for one daemon that is killed and started again."""
    alive = []

    def make(**options):
        alive.append(DaemonPeer(socket_path, **options))
        return alive[-1]

    yield make
    for peer in alive:
        if os.path.exists(peer.path) and not peer._ends:
            peer.close()


@pytest.fixture
def make_session(socket_path, monkeypatch):
    """New Sessions with an environment of their own, ended after the test."""
    made = []

    def make(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        made.append(session.Session())
        return made[-1]

    yield make
    for one in made:
        one.detach()
        if one.control is not None and one.control._thread.is_alive():
            one.control._thread.join(10)


@pytest.fixture
def said():
    """What has been said on stderr in this test."""
    notices._said.clear()
    yield notices._said
    notices._said.clear()
