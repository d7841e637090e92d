"""A main thread that sleeps comes by the interpreter and goes back to sleep; one that does anything else is left alone."""

import os
import random
import signal
import time

import pytest

from gpuwatch.attach import visit
from gpuwatch.attach.injector import inject
from gpuwatch.attach.machines import here
from gpuwatch.attach.process import started
from tests.attach.conftest import until
from tests.attach.test_injector import INTERPRETERS, KILLS, interpreter, lines, note
from tests.running_daemon import PATIENCE

pytestmark = pytest.mark.skipif(here() is None, reason="the ptrace injector is built for x86-64 and aarch64")
SLEEPS = ["sleep", "join", "get", "get_in_time", "wait", "poll", "read"]


def visited(pid):
    """Send it, as the attacher does: looked at, and once more where it has moved meanwhile."""
    asleep = until(lambda: visit.may_visit(pid))
    visit.visit(pid, started(pid), asleep)
    return asleep


def test_what_was_filed_is_done_and_the_sleep_goes_on(launch, tmp_path):
    targets = {way: launch("asleep.py", way, 8 * PATIENCE) for way in SLEEPS}
    for number in range(2):
        for way, target in targets.items():
            inject(target.pid, note(tmp_path / way, number))
            visited(target.pid)
            until(lambda way=way, number=number: len(lines(tmp_path / way)) == number + 1, 6)
    targets["read"].stdin.write("line\n")
    targets["read"].stdin.flush()
    assert [target.stdout.readline() for target in targets.values()] == ["True\n"] * len(SLEEPS)


@pytest.mark.parametrize("version", [version for version in INTERPRETERS if version != "3.11"])
def test_in_every_interpreter(version, launch, tmp_path):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    for way in ("sleep", "join", "get_in_time"):
        target = launch("asleep.py", way, 60 * PATIENCE, python=python)
        inject(target.pid, note(tmp_path / way, "x"))
        visited(target.pid)
        until(lambda way=way: lines(tmp_path / way) == ["x"])
        visited(target.pid)  # it has gone back to sleep


@pytest.mark.parametrize("way", ["compute", "foreign", "contended"])
def test_a_thread_that_computes_or_sleeps_in_foreign_code_is_left_alone(way, launch, tmp_path):
    target = launch("asleep.py", way, 4 * PATIENCE)
    inject(target.pid, note(tmp_path / "ran", "x"))
    time.sleep(0.3)
    for _ in range(5):
        assert visit.may_visit(target.pid) is None
    assert target.stdout.readline() == "True\n"
    until(lambda: lines(tmp_path / "ran") == ["x"])


def test_twin_without_a_look_at_the_callers_foreign_code_would_be_entered(launch, monkeypatch):
    monkeypatch.setattr(visit, "_called_by_interpreter", lambda *_: True)
    target = launch("asleep.py", "foreign", 60 * PATIENCE)
    assert until(lambda: visit.may_visit(target.pid)) is not None


def test_twin_without_a_look_at_the_lock_one_that_waits_for_the_interpreter_would_be_entered(launch, monkeypatch):
    monkeypatch.setattr(visit, "_waits_for_interpreter", lambda *_: False)
    target = launch("asleep.py", "contended", 60 * PATIENCE)
    assert until(lambda: visit.may_visit(target.pid)) is not None


def test_the_visitor_killed_at_random_instants(launch):
    target = launch("asleep.py", "sleep", 30 * PATIENCE)
    generator = random.Random(2)
    for _ in range(KILLS // 4):
        asleep = until(lambda: visit.may_visit(target.pid))
        child = os.fork()
        if child == 0:
            try:
                while True:
                    visit.visit(target.pid, started(target.pid), asleep)
            finally:
                os._exit(0)
        time.sleep(generator.uniform(0.0, 0.01))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert target.poll() is None
    until(lambda: visit.may_visit(target.pid))  # it sleeps where it slept


def test_a_thread_that_woke_up_is_not_sent(launch):
    target = launch("asleep.py", "sleep", 60 * PATIENCE)
    asleep = until(lambda: visit.may_visit(target.pid))
    with pytest.raises(visit.ElsewhereError, match="woken up"):
        visit.visit(target.pid, started(target.pid), asleep._replace(stack=asleep.stack - 64))
