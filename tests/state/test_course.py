"""The course of a value tells a whole run in eighty numbers, against a plain list of all its values."""

import math
import random

import msgspec
import pytest

from gpuwatch.state.course import STRETCHES, Course


def expected(points, course):
    """The same means from all points."""
    found = []
    for index in range(len(course.counts)):
        first = course.first_step + index * course.stride
        values = [value for step, value in points if first <= step < first + course.stride]
        whole = bool(values) and all(map(math.isfinite, values))
        found.append(math.fsum(values) / len(values) if whole else math.nan if values else None)
    return found


@pytest.mark.parametrize("steps", [1, 7, 80, 81, 1000, 100_000])
def test_a_run_of_any_length_is_told_from_its_first_step_to_its_last(steps):
    rng = random.Random(steps)
    points = [(step, 100.0 / step + rng.random()) for step in range(1, steps + 1)]
    course = Course()
    for step, value in points:
        course.add(step, value)
    assert course.first_step == 1
    assert min(steps, STRETCHES // 2) <= len(course.counts) <= STRETCHES
    assert sum(course.counts) == steps
    last = course.first_step + len(course.counts) * course.stride - 1
    assert steps <= last < steps + course.stride
    assert course.means() == pytest.approx(expected(points, course), rel=1e-12)


def test_a_value_that_is_not_finite_shows_however_long_ago_it_was_and_a_gap_is_a_gap():
    points = [(step, math.inf if step == 5000 else 1.0) for step in (*range(1000, 20_000), *range(60_000, 100_000))]
    course = Course()
    for step, value in points:
        course.add(step, value)
    means = course.means()
    assert [mean is None for mean in means] == [mean is None for mean in expected(points, course)]
    assert sum(mean is None for mean in means) > 10
    assert [index for index, mean in enumerate(means) if mean is not None and math.isnan(mean)] == [4000 // course.stride]


def test_values_that_overflow_together_are_no_mean_and_json_holds_them_all():
    course = Course()
    for step in range(1, 200):
        course.add(step, 1.7e308)
    assert all(mean is not None for mean in course.means())
    assert msgspec.json.decode(msgspec.json.encode(course), type=Course) == course


def test_a_step_far_away_costs_no_memory():
    course = Course()
    course.add(1, 1.0)
    course.add(1 << 48, 2.0)
    assert len(course.counts) <= STRETCHES
    assert course.means()[0] == 1.0
    assert course.means()[-1] == 2.0


def test_a_copy_is_another_one():
    course = Course()
    course.add(1, 1.0)
    kept = course.copy()
    course.add(2, 2.0)
    assert kept.means() == [1.0]
