"""What judging one step costs the daemon: all rules, 150 tensors, on a healthy run and on one in mid-explosion."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from harness import Bench, percentile  # noqa: E402  # a bench is a script, and scripts find the repository themselves

from tests.detectors.simulate import Simulation, healthy_values, rows  # noqa: E402

TENSORS = 150


def costs(steps: int, *, layers: bool, exploding: bool) -> list[float]:
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
        simulation.advance(values, tables=tables)
    return taken[249::50] if exploding else taken[100:]


def main() -> int:
    bench = Bench("detectors", "Judging one step: all rules, 150 tensors", packages=("msgspec",))
    steps = 500 if bench.quick else 5000
    table = []
    for name, layers, exploding in (
        ("no layers", False, False),
        ("3 tables of 150 tensors each step", True, False),
        ("the same, steps at which the norm explodes", True, True),
    ):
        taken = costs(steps, layers=layers, exploding=exploding)
        table.append((name, percentile(taken, 50), percentile(taken, 99)))
    bench.table("Engine.observe, microseconds", ("run", "p50", "p99"), table)
    bench.number("a step with 150 tensors, p50", table[1][1], "us", at_most=200)
    bench.number(
        "the first step of an explosion, p50", table[2][1], "us", at_most=3000, note="layers are compared to find its origin"
    )
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
