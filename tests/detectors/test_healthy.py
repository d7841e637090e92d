"""Healthy runs raise no alarm: tens of thousands of steps of log-normal gradients, warm-ups, restarts and decays."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from tests.detectors.simulate import Simulation, healthy_values, rows

STEPS = 12_000
Schedule = Callable[[int], float]

SCHEDULES: dict[str, Schedule] = {
    "constant": lambda _step: 0.1,
    "linear warm-up and cosine": lambda step: 0.1 * min(1.0, step / 500) * 0.5 * (1 + math.cos(math.pi * step / STEPS)) + 1e-6,
    "cosine with restarts": lambda step: 0.1 * 0.5 * (1 + math.cos(math.pi * (step % 2000) / 2000)) + 1e-5,
    "step decay": lambda step: 0.1 * 0.1 ** (step // 3000),
    "one cycle": lambda step: 0.004 + 0.096 * (1 - abs(2 * step / STEPS - 1)),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules(schedule: Schedule) -> None:
    rng = random.Random(11)
    simulation = Simulation()
    for step in range(1, STEPS + 1):
        values = healthy_values(step, rng)
        rate = schedule(step)
        # A larger rate makes a noisier loss and larger gradients, restarts included: up to 1.5 times the loss at the top.
        values["loss"] *= 1.0 + 5.0 * rate
        values["grad_norm"] *= 1.0 + 10.0 * rate
        simulation.advance(values, (rate,))
    assert [finding.rule for finding in simulation.opened if finding.rule != "loss_plateau"] == []  # at its floor it is flat


@pytest.mark.parametrize("noise", [0.02, 0.3, 0.6])
def test_small_batches_are_noisy(noise: float) -> None:
    rng = random.Random(12)
    simulation = Simulation()
    for step in range(1, STEPS + 1):
        simulation.advance(healthy_values(step, rng, noise=noise))
    assert simulation.alarms == []


def test_a_loss_that_comes_down_to_nothing_may_jump_about() -> None:
    rng = random.Random(13)
    simulation = Simulation()
    for step in range(1, STEPS + 1):
        values = healthy_values(step, rng)
        values["loss"] = (2.3 * math.exp(-step / 300.0) + 1e-5) * math.exp(rng.gauss(0.0, 0.1))
        values["loss"] *= 6.0 if step > 2000 and step % 97 == 0 else 1.0
        simulation.advance(values)
    assert simulation.alarms == []


def test_gradients_that_wander_slowly() -> None:
    """An autocorrelated walk of log(norm), as real norms have."""
    rng = random.Random(14)
    simulation = Simulation()
    wander = 0.0
    for step in range(1, STEPS + 1):
        wander = 0.99 * wander + rng.gauss(0.0, 0.1)
        values = healthy_values(step, rng)
        values["grad_norm"] *= math.exp(wander)
        simulation.advance(values)
    assert simulation.alarms == []


def test_a_negative_loss_is_no_fault() -> None:
    """A log-likelihood of a density, or a reward."""
    rng = random.Random(15)
    simulation = Simulation()
    for step in range(1, 3000):
        simulation.advance({"loss": -step / 100.0 + rng.gauss(0, 3.0), "grad_norm": math.exp(rng.gauss(0, 0.3))})
    assert simulation.opened == []


def test_the_losses_of_a_gan_are_no_measure_of_progress() -> None:
    rng = random.Random(16)
    simulation = Simulation()
    for step in range(1, 4000):
        values = {"loss": math.exp(2.0 * math.sin(step / 40.0) + rng.gauss(0.0, 0.3)), "grad_norm": math.exp(rng.gauss(0, 0.3))}
        simulation.advance(values, optimizers=2)
    assert simulation.alarms == []


def test_a_healthy_loss_scaler() -> None:
    """The search at the start, then one back-off in two thousand steps, each with gradients that are not finite."""
    rng = random.Random(17)
    simulation = Simulation()
    scale = 2.0**24
    for step in range(1, STEPS + 1):
        values = healthy_values(step, rng) | {"loss_scale": scale, "skipped": 0.0, "loss_scale_backoffs": 0.0}
        if step <= 8 or step % 2000 == 0:
            scale /= 2.0
            values |= {"skipped": 1.0, "loss_scale_backoffs": 1.0, "grad_nonfinite_count": 500.0, "grad_norm": 1e9}
        elif step % 2000 == 1999:
            scale *= 2.0
        simulation.advance(values)
    assert [finding.rule for finding in simulation.opened if finding.rule != "loss_plateau"] == []


def test_a_scaler_that_starts_at_one() -> None:
    rng = random.Random(18)
    simulation = Simulation()
    for step in range(1, 500):
        simulation.advance(healthy_values(step, rng) | {"loss_scale": 1.0, "loss_scale_backoffs": 0.0})
    assert simulation.opened == []


def test_layers_of_a_healthy_deep_net() -> None:
    """Gradients that shrink tenfold towards the input, biases next to nothing, and an embedding without any."""
    names = ["embedding.weight"] + [f"blocks.{i // 2}.{'weight' if i % 2 == 0 else 'bias'}" for i in range(48)]
    numels = [100_000] + [4096 if i % 2 == 0 else 64 for i in range(48)]
    rng = random.Random(19)
    simulation = Simulation(names, numels)
    for step in range(1, 3001):
        gradients = [0.0] + [10.0 ** (i / 48.0 - 1.0) * (1.0 if i % 2 == 0 else 1e-9) for i in range(48)]
        weights = [10.0] * 49
        updates = [1e-3] * 49
        tables = [rows(step, "gradient", gradients)]
        if step % 20 == 0:
            tables += [rows(step, "weight", weights), rows(step, "update", updates)]
        simulation.advance(healthy_values(step, rng), tables=tables)
    assert simulation.opened == []


def test_a_converged_net_has_small_gradients_everywhere() -> None:
    rng = random.Random(20)
    simulation = Simulation([f"l{i}.weight" for i in range(12)])
    for step in range(1, 2001):
        tiny = 10.0 ** (-step / 150.0)
        tables = [rows(step, family, [tiny] * 12) for family in ("gradient", "update")] + [rows(step, "weight", [10.0] * 12)]
        simulation.advance(healthy_values(step, rng) | {"update_ratio": tiny / 10.0}, tables=tables)
    assert simulation.opened == []
