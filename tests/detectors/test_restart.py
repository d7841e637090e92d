"""A daemon that comes back to a run in its middle knows how it began, and takes nothing for a fault that was none before."""

from __future__ import annotations

import math
import random

import pytest

from gpuwatch.detectors.engine import Engine
from gpuwatch.state.beginning import FIRST_STEPS
from tests.detectors.simulate import Simulation, healthy_values

CONVERGED_AT, END_AT = 900, 1800


def values(step: int, rng: random.Random) -> dict[str, float]:
    """A loss that comes down to a thousandth, and is thrown up to a fiftieth of the first one now and then."""
    found = healthy_values(step, rng)
    loss = 2.3 * max(1e-3, math.exp(-step / 50.0)) * math.exp(rng.gauss(0.0, 0.1))
    found["loss"] = loss * 20.0 if step > 500 and step % 97 == 0 else loss
    return found


def watched(*, restart: bool, knows_the_beginning: bool = True) -> Simulation:
    simulation, rng, first = Simulation(), random.Random(3), []
    for step in range(1, END_AT + 1):
        simulation.advance(values(step, rng))
        if step <= FIRST_STEPS:
            first.append(simulation.run.step)
        if restart and step == CONVERGED_AT:
            simulation.engine = Engine()
            simulation.run.first_steps = first if knows_the_beginning else []
    return simulation


def test_the_run_is_healthy() -> None:
    assert watched(restart=False).alarms == []


def test_a_restart_in_its_middle_raises_no_alarm() -> None:
    assert watched(restart=True).alarms == []


def test_without_its_beginning_it_would() -> None:
    assert watched(restart=True, knows_the_beginning=False).of("loss_spike")


@pytest.mark.parametrize(("knows_the_beginning", "said"), [(True, "of where it began"), (False, ", where it began")])
def test_a_plateau_is_measured_against_the_beginning(knows_the_beginning: bool, said: str) -> None:
    plateaus = watched(restart=True, knows_the_beginning=knows_the_beginning).of("loss_plateau")
    assert said in plateaus[-1].summary
    assert plateaus[-1].first_step > CONVERGED_AT


def test_what_was_said_of_the_beginning_is_not_said_again() -> None:
    simulation, rng, first = Simulation(), random.Random(3), []
    for step in range(1, FIRST_STEPS + 1):
        simulation.advance({**values(step, rng), "loss": math.nan if step == 3 else 2.3})
        first.append(simulation.run.step)
    assert simulation.of("nonfinite_loss")
    simulation.engine, simulation.findings, simulation.run.first_steps = Engine(), [], first
    for step in range(FIRST_STEPS + 1, 200):
        simulation.advance(values(step, rng))
    assert simulation.findings == []
