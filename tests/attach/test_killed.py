"""A whole attach or detach SIGKILLed at random instants: the job goes on, and the next one works and leaves nothing."""

import os
import random
import signal
import time

import pytest

from gpuwatch.attach import attacher
from tests.attach.conftest import ask, run_of, until
from tests.running_daemon import wait_until

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the ptrace injector is built for x86-64")
KILLS = int(os.environ.get("GPUWATCH_ATTACH_KILLS", "12"))


def begin(target, daemon):
    return attacher.apply(target.pid, "begin", {"socket": str(daemon.socket), "told": None}, timeout_seconds=60)


def attach_and_detach_until_killed(target, daemon, after_seconds):
    child = os.fork()
    if child == 0:
        try:
            while True:
                begin(target, daemon)
                attacher.apply(target.pid, "end", {}, timeout_seconds=60)
        finally:
            os._exit(0)
    time.sleep(after_seconds)
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_whole_attach_killed_at_random_instants(launch, daemon):
    target = launch("trains.py")
    before = ask(target, "look")
    generator = random.Random(2)
    assert begin(target, daemon).answer == "installed"  # compiles what is sent, once for all of them
    for _ in range(KILLS):
        attach_and_detach_until_killed(target, daemon, generator.uniform(0.0, 0.15))
        assert target.poll() is None
    outcome = begin(target, daemon)
    assert outcome.answer in ("installed", "already"), outcome
    wait_until(lambda: (r := run_of(target, daemon)) and r.status == "live" and r.step > 3)
    until(lambda: attacher.apply(target.pid, "end", {}, timeout_seconds=60).answer == "absent")
    until(lambda: ask(target, "look") == before)
