"""The sliding median and MAD against statistics.median over a plain list, in float64."""

from __future__ import annotations

import random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuwatch.detectors.baseline import Baseline

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60)


def slow_sigma(window: list[float]) -> float:
    middle = median(window)
    return 1.4826 * median(abs(value - middle) for value in window)


@given(values)
def test_median_and_deviation_of_a_window(series: list[float]) -> None:
    baseline = Baseline(window=16, warmup=10**6)  # never ready, so never winsorised
    window: list[float] = []
    for value in series:
        baseline.add(value)
        window = [*window, value][-16:]
        assert baseline.median == pytest.approx(median(window), rel=1e-12, abs=1e-9)
        assert baseline.sigma == pytest.approx(slow_sigma(window), rel=1e-9, abs=1e-9)


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=40))
def test_ties(series: list[float]) -> None:
    baseline = Baseline(window=7, warmup=10**6)
    for end, value in enumerate(series, 1):
        baseline.add(value)
        window = series[max(0, end - 7) : end]
        assert (baseline.median, baseline.sigma) == (median(window), pytest.approx(slow_sigma(window)))


def test_nothing_is_scored_before_the_warm_up() -> None:
    baseline = Baseline(warmup=5)
    for _ in range(4):
        baseline.add(1.0)
        assert baseline.score(1e9) == 0.0
    baseline.add(1.1)
    baseline.add(0.9)
    assert baseline.ready


def test_an_outlier_enters_the_window_at_three_sigmas() -> None:
    baseline = Baseline(window=3, warmup=3)
    for value in (1.0, 2.0, 3.0, 1e9):
        baseline.add(value)  # median 2, sigma 1.4826: the last one enters as 6.4478
    assert baseline.median == 3.0
    baseline.add(1e9)
    assert baseline.median == pytest.approx(2.0 + 3 * 1.4826)


def test_an_outlier_does_not_widen_what_is_normal() -> None:
    rng = random.Random(0)
    baseline = Baseline()
    for _ in range(128):
        baseline.add(rng.gauss(0, 1))
    before = baseline.score(10.0)
    for _ in range(20):
        baseline.add(1e9)
    assert baseline.score(10.0) > 0.7 * before


def test_a_shifted_level_becomes_normal_after_about_half_a_window() -> None:
    rng = random.Random(0)
    baseline = Baseline()
    for _ in range(200):
        baseline.add(rng.gauss(0, 1))
    steps = 0
    while baseline.score(10.0) > 4.0:
        baseline.add(rng.gauss(10, 1))
        steps += 1
    assert 40 < steps < 128


def test_the_floor_keeps_a_smooth_series_from_crying_wolf() -> None:
    absolute, relative = Baseline(floor=0.5, warmup=2), Baseline(floor_ratio=0.1, warmup=2)
    for baseline in (absolute, relative):
        for _ in range(10):
            baseline.add(20.0)
    assert absolute.score(21.0) == 2.0
    assert relative.score(21.0) == 0.5


def test_a_restart_forgets() -> None:
    baseline = Baseline(warmup=2)
    for value in (1.0, 2.0, 3.0):
        baseline.add(value)
    baseline.restart()
    assert not baseline.ready
    assert baseline.score(5.0) == 0.0
