"""systemd's notification protocol, heard from systemd's side."""

import os
import socket

import pytest

from gpuwatch.service.systemd import Notifier


@pytest.fixture
def systemd(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        yield listening


def test_variables_are_lines_and_values_stay_on_theirs(systemd, tmp_path):
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    assert notifier.heard
    assert notifier.send(READY=1, STATUS="two\nlines")
    assert systemd.recv(4096) == b"READY=1\nSTATUS=two lines"
    notifier.close()


def test_abstract_address():
    name = f"gpuwatch-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name)
        listening.settimeout(10)
        notifier = Notifier({"NOTIFY_SOCKET": "@" + name})
        assert notifier.send(READY=1)
        assert listening.recv(100) == b"READY=1"
        notifier.close()


def test_nobody_there():
    silent = Notifier({})
    assert not silent.heard
    assert silent.send(READY=1) is False
    silent.close()
    gone = Notifier({"NOTIFY_SOCKET": "/nonexistent/notify"})
    assert gone.send(READY=1) is False
    gone.close()


def test_a_listener_that_does_not_read_is_not_waited_for(systemd, tmp_path):
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    assert [notifier.send(STATUS="x") for _ in range(10_000)][-1] is False
    notifier.close()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "10000000"}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, 0.0),
        ({}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_watchdog(environ, seconds):
    assert Notifier(environ).watchdog_seconds == seconds
