"""What a run has nearly learned raises no alarm, whatever it looks like beside its own recent level; what it loses does."""

from __future__ import annotations

import math
import random

import pytest

from gpuwatch.detectors import learned as learned_module
from gpuwatch.detectors.learned import Learned
from gpuwatch.detectors.rules import loss_spike
from gpuwatch.detectors.sample import Sample
from gpuwatch.state.names import NameTable
from gpuwatch.state.steps import Step
from tests.detectors.simulate import Simulation


def sample(**values: float) -> Sample:
    return Sample(Step(step=1, values=values, groups={}, losses={}, tensors=(), histograms=(), monotonic_ns=0), NameTable())


def test_a_twentieth_of_the_first_five_losses_is_nearly_nothing() -> None:
    learned = Learned()
    for loss in (4.0, 2.0, 2.0, 1.0, 1.0, 0.5):
        learned.observe(sample(loss=loss))
    assert learned.start == pytest.approx(2.0)
    assert learned.has_nearly_all(0.0999)
    assert not learned.has_nearly_all(0.1001)
    assert not learned.has_nearly_all(None)


def test_before_five_losses_nothing_is_said() -> None:
    learned = Learned()
    for loss in (4.0, 2.0, 2.0, 1.0):
        learned.observe(sample(loss=loss))
    assert not learned.has_nearly_all(1e-9)


@pytest.mark.parametrize("values", [{"loss": -1.0}, {"loss": math.nan}, {}, {"loss": 2.0, "skipped": 1.0, "loss_scale": 8.0}])
def test_losses_that_say_nothing(values: dict[str, float]) -> None:
    learned = Learned()
    assert learned.observe(sample(**values)) is None
    assert learned.start == 0.0


def thrown_up() -> Simulation:
    """A loss that has come down to a millionth, thrown up ten thousandfold every 300 steps, gradients with it."""
    rng, simulation = random.Random(3), Simulation()
    for step in range(1, 2000):
        loss = max(math.exp(-step / 20.0), 1e-6) * math.exp(rng.gauss(0.0, 0.1))
        if step > 600 and step % 300 < 30:
            loss = 0.01 * math.exp(-(step % 300) / 10.0)
        simulation.advance({"loss": loss, "grad_norm": math.sqrt(loss)})
    return simulation


def test_a_converged_run_that_is_thrown_up_raises_no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert thrown_up().alarms == []
    monkeypatch.setattr(learned_module, "_NEARLY_ALL_RATIO", 0.0)
    assert {finding.rule for finding in thrown_up().alarms} >= {"exploding_gradient", "loss_spike"}


def test_a_converged_run_whose_gradient_is_beyond_all_it_ever_had_does() -> None:
    rng, simulation = random.Random(3), Simulation()
    for step in range(1, 400):
        simulation.advance({"loss": max(math.exp(-step / 20.0), 1e-6), "grad_norm": math.exp(rng.gauss(0.0, 0.1))})
    simulation.advance({"loss": 1e-6, "grad_norm": 50.0})
    assert [finding.rule for finding in simulation.opened] == ["exploding_gradient"]


def long_tailed(extra: float) -> Simulation:
    """Log-normal losses with sigma 0.25, an outlier of 4.4 sigmas every 40 steps, and at step 900 one of exp(`extra`)."""
    rng, simulation = random.Random(5), Simulation()
    for step in range(1, 1000):
        noise = rng.gauss(0.0, 0.25)
        simulation.advance({"loss": math.exp(extra if step == 900 else 1.1 if step % 40 == 0 else noise)})
    return simulation


def test_a_long_tail_is_known_after_its_first_excursions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert long_tailed(1.5).of("loss_spike") == []
    monkeypatch.setattr(loss_spike, "_BEYOND_KNOWN", 0.0)
    assert 900 in [finding.step for finding in long_tailed(1.5).of("loss_spike")]


def test_a_spike_beyond_the_tail_is_told() -> None:
    assert [finding.step for finding in long_tailed(3.0).of("loss_spike")] == [900]


def test_a_loss_of_everything_is_found_in_ten_steps_however_noisy_it_was_before() -> None:
    rng, simulation = random.Random(7), Simulation()
    for step in range(1, 500):
        simulation.advance({"loss": 2.0 * math.exp(rng.gauss(-3.0 if step > 50 else 0.0, 1.5 if step > 50 else 0.1))})
    assert simulation.alarms == []
    for _ in range(10):
        simulation.advance({"loss": 2.6})
    (finding,) = simulation.of("loss_diverging")
    assert (finding.severity, finding.step <= 509) == ("critical", True)
