"""gdb as a way in: the hooks go in and out by files, and a main thread that does not come is let go of, alive."""

import os
import shutil

import pytest

from gpuwatch.attach import attacher
from tests.attach.conftest import ask, run_of, until
from tests.running_daemon import wait_until

pytestmark = pytest.mark.skipif(shutil.which("gdb") is None, reason="no gdb on this machine")


def files():
    return [name for folder in ("/dev/shm", "/var/tmp") for name in os.listdir(folder) if name.startswith("gpuwatch-")]


@pytest.mark.slow
def test_in_and_out(launch, daemon):
    target = launch("trains.py", "fp16")
    before = ask(target, "look")
    left = files()
    options = {"told": None, "socket": str(daemon.socket)}
    outcome = attacher.apply(target.pid, "begin", options, method="gdb", timeout_seconds=60)
    assert outcome.answer == "installed", outcome
    assert outcome.method == "gdb"
    wait_until(lambda: (r := run_of(target, daemon)) and r.step > 3)
    assert attacher.apply(target.pid, "end", {}, method="gdb", timeout_seconds=60).answer == "detached"
    assert ask(target, "look") == before
    assert set(files()) <= set(left)


def test_a_main_thread_that_does_not_come_is_let_go_of(launch, monkeypatch):
    monkeypatch.setattr(attacher, "look", lambda pid: (attacher.read_process(pid), None))
    target = launch("asleep.py", "sleep", 5)
    left = files()
    outcome = attacher.apply(target.pid, "end", {}, method="gdb", timeout_seconds=2)
    assert "gdb does not wait" in outcome.sentence, outcome
    assert target.stdout.readline() == "True\n"
    until(lambda: target.poll() is not None)
    assert target.returncode == 0
    assert set(files()) <= set(left)
