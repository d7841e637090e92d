"""Nothing is lost where a slow run is suddenly fast, and what that costs is counted: wake-ups, not time."""

import random
from types import SimpleNamespace

import pytest

from gpuwatch.intake import glances
from gpuwatch.intake.pace import Pace

SLOTS = 1024
USUAL_SECONDS = 1.0


class Loop:
    """The daemon's loop on a clock of its own, with one ring that is filled at `records_per_second`."""

    def __init__(self, slots=SLOTS):
        self.now = self.written = 0.0
        self.read = self.lost = self.looks = self.wakes = 0
        self.records_per_second = 0.0
        self.change_at = (float("inf"), 0.0)  # when the run changes its pace, and to what
        self.pace = Pace(slots, 0)
        self.reader = SimpleNamespace(slot_count=slots, waiting=0)
        self.sessions = [SimpleNamespace(reader=self.reader)]

    def advance(self, seconds):
        until = self.now + seconds
        at, records_per_second = self.change_at
        if self.now < at <= until:
            self.written += (at - self.now) * self.records_per_second
            self.now, self.records_per_second = at, records_per_second
        self.written += (until - self.now) * self.records_per_second
        self.now = until
        self.reader.waiting = int(self.written) - self.read
        self.wakes += 1
        return False

    def run(self, seconds, wait=glances.wait):
        until = self.now + seconds
        while self.now < until:
            wait(self.advance, self.sessions, self.pace.period_seconds(USUAL_SECONDS), lambda: self.now)
            self.pace.look(self.reader.waiting, round(self.now * 1e9))
            self.lost += max(0, self.reader.waiting - self.reader.slot_count)
            self.read, self.looks = int(self.written), self.looks + 1


def without_glances(dispatch, _sessions, patience_seconds, _clock):
    dispatch(patience_seconds)


def lost_by_runs_that_are_suddenly_fast(wait, records_per_second):
    lost = 0
    for seed in range(50):
        loop = Loop()
        loop.records_per_second = 2.0
        loop.change_at = (200.0 + random.Random(seed).random(), records_per_second)
        loop.run(203.0, wait)
        lost += loop.lost
    return lost


@pytest.mark.parametrize("records_per_second", [1000.0, 2000.0, 3000.0, 6000.0])
def test_a_slow_run_that_is_suddenly_fast_loses_nothing(records_per_second):
    assert lost_by_runs_that_are_suddenly_fast(glances.wait, records_per_second) == 0


def test_without_glances_it_would():
    assert lost_by_runs_that_are_suddenly_fast(without_glances, 3000.0) > 10_000


def test_a_slow_run_costs_a_look_and_six_glances_a_second():
    loop = Loop()
    loop.records_per_second = 2.0
    loop.run(120.0)  # until its pace is known
    loop.looks = loop.wakes = 0
    loop.run(10.0)
    assert loop.looks in (10, 11)
    assert loop.wakes <= 77


def test_a_ring_of_few_slots_is_not_stared_at_and_a_large_one_needs_fewer_glances():
    wakes = {}
    for slots in (8, 4080):
        loop = Loop(slots)
        loop.run(120.0)
        loop.wakes = 0
        loop.run(10.0)
        wakes[slots] = loop.wakes
    assert wakes[8] <= 225  # 20 a second, and the looks
    assert wakes[4080] <= 21  # 2 a second


def test_whoever_has_something_to_say_is_heard_at_once_and_without_rings_there_is_no_glance():
    waits = []

    def dispatch(seconds):
        waits.append(seconds)
        return True

    glances.wait(dispatch, Loop().sessions, 0.5)
    glances.wait(dispatch, [], 0.5)
    assert waits == [pytest.approx(0.1536), 0.5]


def test_a_head_that_went_backwards_is_no_reason_to_look():
    loop = Loop()
    loop.reader.waiting = -(1 << 60)
    waits = []
    glances.wait(waits.append, loop.sessions, 0.6, lambda: sum(waits))
    assert len(waits) == 4
