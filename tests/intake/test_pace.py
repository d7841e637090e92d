"""A ring is looked at as seldom as it allows, and is never found full by a run that keeps its pace."""

import pytest

from gpuwatch.intake import pace
from gpuwatch.intake.pace import Pace

USUAL_SECONDS = 0.5
SLOTS = 512


class Reader:
    """Reads a ring whenever its pace asks for it."""

    def __init__(self):
        self.pace = Pace(SLOTS, 0)
        self.now = 0.0

    def follow(self, records_per_second, seconds):
        """(the most that ever waited, the looks)."""
        until, most, looks = self.now + seconds, 0, 0
        while self.now < until:
            period = self.pace.period_seconds(USUAL_SECONDS)
            self.now += period
            waiting = round(records_per_second * period)
            self.pace.look(waiting, round(self.now * 1e9))
            most, looks = max(most, waiting), looks + 1
        return most, looks


@pytest.mark.parametrize("records_per_second", [1, 10, 60, 100, 500, 2000, 6000])
def test_a_ring_is_never_more_than_a_quarter_full_and_seldom_looked_at_when_it_fills_slowly(records_per_second):
    reader = Reader()
    most, _ = reader.follow(records_per_second, 120.0)
    later, looks = reader.follow(records_per_second, 10.0)
    assert later <= pace.MAX_FILL_RATIO * SLOTS + 1
    assert most <= 0.6 * SLOTS  # before its pace was known
    wanted_seconds = {1: 0.5, 10: 0.5, 60: 0.5, 100: 0.32, 500: 0.2, 2000: 0.064, 6000: 0.0213}[records_per_second]
    assert looks == pytest.approx(10.0 / wanted_seconds, rel=0.25, abs=1)


def test_a_loop_that_goes_on_after_a_pause_finds_its_reader_as_fast_as_before():
    reader = Reader()
    reader.follow(2000, 20.0)
    reader.follow(0, 30.0)  # validation
    assert reader.pace.period_seconds(USUAL_SECONDS) * 2000 < 0.5 * SLOTS
    reader.follow(0, 3600.0)
    assert reader.pace.period_seconds(USUAL_SECONDS) == USUAL_SECONDS


def test_what_had_gathered_before_the_first_look_is_no_pace():
    ring = Pace(SLOTS, 0)
    ring.look(500, 1_000_000)
    ring.look(1, 100_000_000)
    assert ring.period_seconds(USUAL_SECONDS) == pace.UNKNOWN_PERIOD_SECONDS
    ring.look(1, 61_000_000_000)
    assert ring.period_seconds(USUAL_SECONDS) == USUAL_SECONDS


def test_the_first_steps_are_watched_closely_because_the_next_ones_may_be_fast():
    reader = Reader()
    ring = reader.pace
    assert reader.follow(0.2, 30.0)[1] == pytest.approx(600, abs=2)
    assert ring.period_seconds(1.0) == ring.period_seconds(0.1) == pace.UNKNOWN_PERIOD_SECONDS
    assert ring.period_seconds(0.01) == 0.01  # what the configuration asks for is not stretched
    reader.follow(0.2, 40.0)
    assert ring.period_seconds(USUAL_SECONDS) == USUAL_SECONDS


def test_a_head_that_goes_backwards_does_no_harm():
    ring = Pace(SLOTS, 0)
    for number in range(1, 100):
        ring.look(1, number * 100_000_000)
    ring.look(-(1 << 60), 10_000_000_000)
    assert ring.period_seconds(USUAL_SECONDS) == USUAL_SECONDS


@pytest.mark.parametrize(("shortest_ns", "looks_a_second"), [(pace.SHORTEST_NS, 2), (0, 7.8125)])
def test_two_looks_in_a_row_are_no_pace(monkeypatch, shortest_ns, looks_a_second):
    """A record came while the one before it was read: one in a millisecond. The twin takes that for a thousand a second."""
    monkeypatch.setattr(pace, "SHORTEST_NS", shortest_ns)
    ring = Pace(SLOTS, 0)
    now_ns = 0
    for _ in range(1000):
        now_ns += 100_000_000
        ring.look(3, now_ns)
        ring.look(1, now_ns + 1_000_000)
    assert ring.period_seconds(USUAL_SECONDS) == pytest.approx(1 / looks_a_second)


def test_a_burst_that_matters_is_a_pace_at_once():
    ring = Pace(SLOTS, 0)
    ring.look(1, 0)
    for now_ns in range(20_000_000, 240_000_000, 20_000_000):
        ring.look(100, now_ns)  # 5,000 a second
    assert ring.period_seconds(USUAL_SECONDS) < 0.06
