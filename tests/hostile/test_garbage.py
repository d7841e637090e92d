"""Garbage: mutated frames of every kind, many of them, give records or DecodeErrors and leave no memory behind."""

import os
import socket
import subprocess
import sys

import pytest
from gpuwatch_hooks import wire

from tests.intake.conftest import Client
from tests.running_daemon import ROOT, RunningDaemon, wait_until

INPUTS = 60_000 * int(os.environ.get("GPUWATCH_CHAOS_ROUNDS", "1"))


@pytest.mark.timeout(120 + INPUTS // 5000)
def test_mutated_frames():
    command = [sys.executable, "-m", "tests.hostile.fuzz", "--inputs", str(INPUTS)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100 + INPUTS // 5000, check=False)
    assert ended.returncode == 0, ended.stderr
    words = ended.stdout.split()
    said = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    assert said["taken"] > INPUTS // 20, "the mutations are too wild to reach the decoders"
    assert said["refused"] > INPUTS // 20
    assert said["grown_kib"] < 10_000


def test_oversized_messages_cost_the_daemon_nothing(tmp_path):
    """A message of a megabyte is cut off by the kernel at 64 KiB: it is never held, and its sender is sent away."""
    with RunningDaemon(tmp_path) as daemon:
        before = daemon.memory_bytes("Rss")
        for _ in range(200):
            client = Client(daemon.socket, 8, 256).dial()
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            try:
                client.send(b"x" * 190_000)
            except OSError:
                client.send(b"x" * (wire.MAX_MESSAGE_BYTES + 1))
            wait_until(lambda: client.heard()[-1:] == [None])  # noqa: B023
            client.close()
            client.ring.close()
        assert daemon.memory_bytes("Rss") - before < 4 << 20
        assert daemon.end() == 0
