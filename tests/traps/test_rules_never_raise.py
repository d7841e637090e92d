"""No rule raises, whatever a run reports: one that does is switched off, and finds nothing for the rest of the run.

Simulation is strict: a rule that raises fails the test.
"""

import itertools
import math
import random

import pytest
from gpuwatch_hooks import wire

from tests.detectors.simulate import Simulation, cells, healthy_values, histogram

LAYERS = ["embed.weight", "a.weight", "a.bias", "norm.weight", "b.weight", "c.weight", "d.weight", "e.weight", "head.weight"]
ODD = [0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 5e-324, 1e308, -1e308, 1e-30, 2.0**63]
FLOAT32 = [value for value in ODD if not 3.4e38 < abs(value) < math.inf]
TABLES = ("gradient", "weight", "update", "second_moment")


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_a_run_in_which_everything_is_that_number(value):
    simulation = Simulation(LAYERS)
    for step in range(1, 420):
        row = dict.fromkeys(wire.TENSOR_COLUMNS, value if value in FLOAT32 or math.isnan(value) else 1.0)
        tables = [cells(step, family, [row] * len(LAYERS)) for family in TABLES] if step % 10 == 1 else None
        simulation.advance(dict.fromkeys(wire.STEP_FIELDS, value), (value,), tables, decay=value)


@pytest.mark.parametrize("field", wire.STEP_FIELDS)
def test_a_healthy_run_in_which_one_field_goes_odd(field):
    """After its baselines are there: two of each number, then as before."""
    simulation, rng = Simulation(), random.Random(3)
    for step in range(1, 261):
        values = healthy_values(step, rng)
        simulation.advance(values | ({field: 0.0} if step > 130 else {}))
    for value in itertools.chain(*zip(ODD, ODD, strict=True)):
        simulation.advance(healthy_values(simulation.step + 1, rng) | {field: value})
    for _ in range(40):
        simulation.advance(healthy_values(simulation.step + 1, rng))


@pytest.mark.parametrize("seed", range(6))
def test_runs_of_random_oddities(seed):
    rng = random.Random(seed)
    simulation = Simulation(LAYERS[: rng.randrange(0, len(LAYERS) + 1)] or None)
    fields = rng.sample(wire.STEP_FIELDS, 20)
    for step in range(1, 300):
        odd = rng.random() < 0.3
        values = {name: rng.choice(ODD) if odd else rng.random() for name in fields if rng.random() < 0.9}
        tables = []
        for family in TABLES:
            if rng.random() < 0.3:
                rows = [{name: rng.choice(FLOAT32) for name in wire.TENSOR_COLUMNS} for _ in range(rng.randrange(0, 12))]
                tables.append(cells(step, family, rows))
        if rng.random() < 0.3:
            tables.append(histogram(step, {rng.randrange(-48, 16): rng.choice([0, 1, 2**31])}, rng.randrange(1, 12)))
        if rng.random() < 0.2:
            simulation.log(rng.choice(["val/loss", "eval_loss", "", "Accuracy/val"]), rng.choice(ODD))
        if rng.random() < 0.1:
            simulation.tell(rng.choice(wire.EVENT_CODES), step, rng.choice(ODD), "")
        simulation.advance(values, tuple(rng.choice(ODD) for _ in range(rng.randrange(0, 3))), tables, rng.randrange(1, 3))


def test_the_machinery_would_notice():
    simulation = Simulation()
    simulation.engine.faults["loss_spike"] = 1
    with pytest.raises(AssertionError, match="loss_spike"):
        simulation.advance({"loss": 1.0})
