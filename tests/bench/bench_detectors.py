"""What judging one step costs the daemon: all rules, 150 tensors, on a healthy run and on one in mid-explosion."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from harness import Bench, percentile  # noqa: E402  # a bench is a script, and scripts find the repository themselves

from tests.detectors.healthy_runs import KINDS  # noqa: E402
from tests.detectors.simulate import Simulation, healthy_values, histogram, rows  # noqa: E402

TENSORS = 150


def costs(steps: int, *, layers: bool, exploding: bool, float16: bool = False) -> list[float]:
    """Microseconds of Engine.observe for each of `steps` steps; with `exploding`, of the steps that begin an explosion."""
    rng = random.Random(1)
    simulation = Simulation([f"blocks.{i}.weight" for i in range(TENSORS)])
    observe = simulation.engine.observe
    taken = []

    def timed(run, step):
        start = time.perf_counter()
        changed = observe(run, step)
        taken.append((time.perf_counter() - start) * 1e6)
        return changed

    simulation.engine.observe = timed
    for step in range(1, steps + 1):
        values = healthy_values(step, rng)
        factor = 50.0 if exploding and step > 200 and step % 50 == 0 else 1.0
        values["grad_norm"] *= factor
        norms = [0.1 * factor * rng.random() for _ in range(TENSORS)]
        tables = [rows(step, family, norms) for family in ("gradient", "weight", "update")] if layers else []
        if float16:
            values |= {"loss_scale": 65536.0, "grad_absmax": 0.1}
            tables.append(histogram(step, dict.fromkeys(range(-30, -4), 100), TENSORS))
        simulation.advance(values, tables=tables)
    return taken[249::50] if exploding else taken[100:]


def moments(count: int) -> list[float]:
    """Microseconds of Engine.look for each of `count` moments of a healthy run with a GPU and four ranks."""
    run = KINDS[0](1)
    run.step()
    look, taken = run.simulation.engine.look, []
    for run.number in range(10, 10 * count, 10):
        moment = run.moment({"step_seconds": 0.1})
        start = time.perf_counter()
        look(run.simulation.run, moment)
        taken.append((time.perf_counter() - start) * 1e6)
    return taken


def main() -> int:
    bench = Bench("detectors", "Judging one step: all rules, 150 tensors", packages=("msgspec",))
    steps = 500 if bench.quick else 5000
    table = []
    for name, layers, exploding, float16 in (
        ("no layers", False, False, False),
        ("3 tables of 150 tensors each step", True, False, False),
        ("the same, steps at which the norm explodes", True, True, False),
        ("the same in float16, 150 histograms each step", True, False, True),
    ):
        taken = costs(steps, layers=layers, exploding=exploding, float16=float16)
        table.append((name, percentile(taken, 50), percentile(taken, 99)))
    looks = moments(steps)
    table.append(("a moment (once a second): 17 rules, one GPU, four ranks", percentile(looks, 50), percentile(looks, 99)))
    bench.table("Engine.observe, microseconds", ("run", "p50", "p99"), table)
    bench.number("a step with 150 tensors, p50", table[1][1], "us", at_most=200)
    bench.number("a step in float16 with 150 histograms, p50", table[3][1], "us", at_most=300)
    bench.number("a moment, p50", table[4][1], "us", at_most=200)
    bench.number(
        "the first step of an explosion, p50", table[2][1], "us", at_most=3000, note="layers are compared to find its origin"
    )
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
