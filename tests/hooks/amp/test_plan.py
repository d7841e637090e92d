"""Blocks in random order, and the interval over their ratios, against what is known of both."""

import math
import random
import statistics

import pytest
from gpuwatch_hooks.amp.plan import WARM_UP_STEPS, Plan, interval


def test_every_round_has_a_block_of_each_variant_in_an_order_that_the_seed_decides():
    plan = Plan(["a", "b", "c"], rounds=50, block_steps=3, seed=7)
    rounds = [tuple(plan.order[i : i + 3]) for i in range(0, 150, 3)]
    assert all(sorted(chosen) == [0, 1, 2] for chosen in rounds)
    assert len(set(rounds)) == 6, "all orders occur"
    assert plan.order == Plan(["a", "b", "c"], 50, 3, seed=7).order, "the same on every rank"
    assert plan.order != Plan(["a", "b", "c"], 50, 3, seed=8).order
    assert plan.steps == 150 * (WARM_UP_STEPS + 3)
    assert plan.variant_of(plan.steps) is None


def test_steps_behind_a_switch_do_not_count():
    plan = Plan(["a", "b"], 2, 3, seed=0)
    for step in range(plan.steps):
        slow = step % plan.block_steps < WARM_UP_STEPS
        plan.add(step, 99.0 if slow else 1.0 + plan.variant_of(step), 1e9 if slow else 100.0 * (1 + plan.variant_of(step)))
    assert plan.seconds(0) == [1.0, 1.0]
    assert plan.steps_per_second(1) == 0.5
    assert (plan.peak_bytes(0), plan.peak_bytes(1)) == (100.0, 200.0)
    ratio, low, high = plan.speedup(1)
    assert ratio == pytest.approx(0.5)
    assert low == pytest.approx(high)


@pytest.mark.parametrize("rounds", [3, 6, 31])
def test_the_interval_covers_the_truth_19_times_in_20(rounds):
    noise, truth, covered = random.Random(rounds), math.log(1.4), 0
    for _ in range(2000):
        logs = [truth + noise.gauss(0, 0.2) for _ in range(rounds)]
        ratio, low, high = interval(logs)
        assert ratio == pytest.approx(math.exp(statistics.fmean(logs)))
        covered += low <= 1.4 <= high
    assert 0.93 <= covered / 2000 <= 0.97


def test_too_little_gives_no_number():
    assert all(map(math.isnan, interval([0.1])))
    empty = Plan(["a", "b"], 2, 3, seed=0)
    assert math.isnan(empty.steps_per_second(0))
    assert math.isnan(empty.peak_bytes(0))
    with pytest.raises(ValueError, match="two variants"):
        Plan(["a"], 2, 3, 0)
