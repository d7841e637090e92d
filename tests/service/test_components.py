"""Parts that fail alone: what a guard catches, how it backs off, and how a thread that hangs is told."""

import itertools
import threading
import time

import pytest

from gpuwatch.selfstats import SelfStats
from gpuwatch.service import components
from gpuwatch.service.components import Guard, Worker
from tests.running_daemon import wait_until


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(components, "time", clock)
    return clock


def test_a_failure_is_told_and_tried_again_with_a_growing_pause(clock):
    calls, stats = [], SelfStats()

    def turn():
        calls.append(clock.now)
        raise OSError("disk")

    guard = Guard("part", turn, stats)
    for _ in range(1000):
        guard.run()
        clock.now += 0.1
    pauses = [round(later - earlier) for earlier, later in itertools.pairwise(calls)]
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    state = stats.components()["part"]
    assert (state.up, state.failures, state.last_error) == (False, len(calls), "OSError: disk")


def test_it_is_up_again_after_a_good_turn_and_the_next_pause_is_short(clock):
    stats, good = SelfStats(), []
    guard = Guard("part", lambda: good or 1 / 0, stats)
    guard.run()
    clock.now += 1.1
    guard.run()
    clock.now += 2.1
    good.append(1)
    guard.run()
    assert stats.components()["part"].up
    good.clear()
    guard.run()
    clock.now += 1.1
    good.append(1)
    guard.run()
    assert stats.components()["part"].up


def test_interrupts_are_not_swallowed():
    def turn():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Guard("part", turn, SelfStats()).run()


def test_a_period_is_kept(clock):
    calls = []
    guard = Guard("part", lambda: calls.append(clock.now), SelfStats(), period_seconds=1.0)
    for _ in range(100):
        guard.run()
        clock.now += 0.1
    assert 9 <= len(calls) <= 11


def test_a_part_that_never_began_is_known_and_down():
    stats = SelfStats()
    Guard("part", lambda: None, stats)
    assert not stats.components()["part"].up


def test_a_worker_has_a_turn_at_once_one_when_it_is_hurried_and_its_last_when_it_is_stopped():
    turns = []
    worker = Worker("part", lambda: turns.append(time.monotonic()), SelfStats(), period_seconds=60)
    worker.start()
    wait_until(lambda: len(turns) == 1)
    worker.hurry()
    wait_until(lambda: len(turns) == 2)
    assert worker.stop(10)
    assert len(turns) == 3


def test_a_worker_that_is_stopped_while_it_works_still_has_its_last_turn():
    turns, go_on = [], threading.Event()

    def turn():
        turns.append(1)
        go_on.wait(60)

    worker = Worker("part", turn, SelfStats(), period_seconds=60)
    worker.start()
    wait_until(lambda: turns)
    assert worker.stop(0.0) is False
    go_on.set()
    assert worker.stop(10)
    assert len(turns) == 2


def test_a_worker_that_hangs_is_down_by_its_missing_beat_and_does_not_hold_up_the_end():
    stats, hang = SelfStats(), threading.Event()
    turns = []

    def turn():
        turns.append(1)
        if len(turns) > 2:
            hang.wait(60)

    worker = Worker("part", turn, stats, period_seconds=0.01, stale_after_seconds=0.2)
    worker.start()
    wait_until(lambda: stats.components()["part"].up)
    wait_until(lambda: not stats.components()["part"].up)
    assert "no sign of life" in stats.components()["part"].last_error
    assert worker.stop(0.1) is False
    hang.set()
    assert worker.stop(10)
