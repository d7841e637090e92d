"""Counters and the histogram of durations: claims of a process never make a counter fall or jump to infinity."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuwatch.state.counters import PHASES, Counters, seconds
from gpuwatch.state.durations import STEP_BOUNDS_SECONDS, Durations
from gpuwatch.state.steps import Step

FIELDS = ["grad_nonfinite_count", "loss_scale_backoffs", "micro_batches", "skipped", "hook_seconds"]
FIELDS += [f"{phase}_seconds" for phase in PHASES]


@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), st.floats())))
def test_counters_only_grow_and_stay_finite(claims: list[dict[str, float]]) -> None:
    counters = Counters()
    before: tuple[float, ...] = (0, 0, 0, 0.0, 0.0)
    for step, values in enumerate(claims, 1):
        counters.add_step(Step(step, 0, values, {}, {}, (), ()))
        now = (
            counters.nonfinite_gradients,
            counters.loss_scale_backoffs,
            counters.skipped_steps,
            counters.hook_seconds,
            sum(counters.phase_seconds.values()),
        )
        assert all(b <= n for b, n in zip(before, now, strict=True))
        before = now
    assert counters.steps == len(claims)
    assert all(map(math.isfinite, before))
    assert all(isinstance(value, int) for value in before[:3])


def test_one_runs_counters_are_not_anothers() -> None:
    first, second = Counters(), Counters()
    first.add_dropped("overwritten", 3)
    first.count_event("notice")
    assert (second.dropped, second.events) == ({}, {})
    first.add_dropped("overwritten", -5)
    assert first.dropped == {"overwritten": 3}


@given(st.lists(st.floats(0, 10_000)))
def test_buckets_hold_what_is_at_most_their_bound(durations: list[float]) -> None:
    histogram = Durations()
    for duration in durations:
        histogram.add(duration)
    total = 0
    for bound, count in zip(STEP_BOUNDS_SECONDS, histogram.counts, strict=False):
        total += count
        assert total == sum(duration <= bound for duration in durations)
    assert histogram.count == len(durations)
    assert histogram.sum_seconds == pytest.approx(math.fsum(durations))


def test_the_bounds_reach_from_a_toy_to_a_large_model() -> None:
    assert (STEP_BOUNDS_SECONDS[0], STEP_BOUNDS_SECONDS[-1]) == (0.001, 600.0)
    assert list(STEP_BOUNDS_SECONDS) == sorted(set(STEP_BOUNDS_SECONDS))


@pytest.mark.parametrize("claim", [None, -1.0, math.nan, math.inf, 0.0, 1e300])
def test_what_is_no_duration_counts_as_none(claim: float | None) -> None:
    assert seconds(claim) == 0.0
