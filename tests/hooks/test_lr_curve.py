"""The curve of a range test against a slow float64 twin, and on losses whose answer is known."""

import math
import random

import pytest
from gpuwatch_hooks.lr_curve import Curve, rate_at


def curve(losses, least=1e-7, largest=10.0):
    made = Curve()
    for index, loss in enumerate(losses):
        made.add(rate_at(index, len(losses), least, largest), loss)
    return made


def gaussian_twin(losses, width):
    found = []
    for i in range(len(losses)):
        weights = [math.exp(-(((i - j) / width) ** 2) / 2) if abs(i - j) <= int(3 * width) else 0.0 for j in range(len(losses))]
        finite = [(w, loss) for w, loss in zip(weights, losses, strict=True) if w and math.isfinite(loss)]
        found.append(math.fsum(w * loss for w, loss in finite) / math.fsum(w for w, _ in finite) if finite else math.nan)
    return found


@pytest.mark.parametrize("points", [2, 30, 100, 400])
def test_smoothing_is_the_gaussian_mean_of_what_is_finite(points):
    noise = random.Random(points)
    losses = [noise.choice([noise.random(), math.nan, math.inf]) if points > 2 else noise.random() for _ in range(points)]
    assert curve(losses).smoothed() == pytest.approx(gaussian_twin(losses, max(1.5, 0.03 * points)), rel=1e-12, nan_ok=True)


def test_rates_are_equal_factors_apart():
    rates = [rate_at(i, 5, 1e-4, 1.0) for i in range(5)]
    assert rates == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])


def fall(points=100, middle=-2.0, noise=0.0):
    """A loss that falls by a logistic curve around 10**middle and explodes two decades later."""
    generator = random.Random(1)
    rates = [rate_at(i, points, 1e-7, 10.0) for i in range(points)]
    return [
        1 / (1 + math.exp(4 * (math.log10(rate) - middle)))
        + 0.1
        + 0.02 * max(0.0, math.log10(rate) - middle - 1) ** 6
        + noise * generator.gauss(0, 1)
        for rate in rates
    ]


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_suggestion_is_where_the_loss_falls_fastest(noise):
    found = curve(fall(noise=noise))
    assert math.log10(found.suggestion()) == pytest.approx(-2.0, abs=0.4)
    assert -2.5 < math.log10(found.minimum_tenth()) < -0.9


def test_twin_the_usual_average_of_the_past_suggests_a_rate_that_is_too_high():
    losses, average, past = fall(), None, []
    for loss in losses:
        average = loss if average is None else 0.95 * average + 0.05 * loss
        past.append(average)
    steepest = min(range(1, len(past) - 1), key=lambda i: past[i + 1] - past[i - 1])
    assert math.log10(rate_at(steepest, len(past), 1e-7, 10.0)) > -1.8


def test_what_falls_nowhere_gives_no_suggestion():
    rising = curve([1.0 + i for i in range(50)])
    assert rising.suggestion() is None
    assert curve([math.nan] * 50).minimum_tenth() is None
    assert rising.minimum_tenth() is None, "a tenth of the lowest rate is no choice"


def test_it_has_diverged_when_the_loss_is_several_times_its_least_or_not_finite():
    assert curve([1.0] * 20 + [math.nan]).has_diverged()
    assert curve([1.0] * 20 + [100.0] * 3).has_diverged()
    assert not curve([1.0] * 20 + [4.0]).has_diverged(), "one batch proves nothing"
    assert not curve([]).has_diverged()
    assert not curve([-1.0] * 20 + [5.0] * 3).has_diverged(), "a loss below zero has no multiple"


def test_nothing_is_suggested_from_the_way_down_from_a_peak():
    # Adam with rates above 0.1 on a small classifier: up to 17, and down again as fast, without an end by divergence.
    curve = Curve()
    for i in range(100):
        rate = rate_at(i, 100, 1e-7, 10.0)
        fall = 0.15 / (1.0 + math.exp(-4.0 * (math.log10(rate) + 2.7)))
        peak = 5.0 * math.exp(-0.5 * ((i - 78) / 3.0) ** 2)
        curve.add(rate, 2.31 - fall + peak + (0.2 if i > 85 else 0.0))
    assert not curve.has_diverged()
    assert 1e-3 < curve.suggestion() < 1e-2
    assert curve.suggestion() > curve.minimum_tenth()
    assert 1e-3 < curve.minimum_tenth() < 1e-2
    deeper = Curve()  # a peak behind which the loss is lower than ever
    for i, (rate, loss) in enumerate(zip(curve.rates, curve.losses, strict=True)):
        deeper.add(rate, loss - (0.5 if i > 88 else 0.0))
    assert deeper.suggestion() == curve.suggestion()
