"""All rules together: one that breaks costs the others nothing, settings reach their rule, an ended run is closed."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import pytest

import gpuwatch.detectors
from gpuwatch.detectors.engine import MAX_FAULTS, Engine
from gpuwatch.detectors.rules.loss_spike import LossSpike
from tests.detectors.simulate import Simulation, healthy_values


def healthy(simulation: Simulation, steps: int, **changes: float) -> None:
    rng = random.Random(simulation.step)
    for _ in range(steps):
        simulation.advance(healthy_values(simulation.step + 1, rng) | changes)


def test_a_rule_that_raises_is_switched_off_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken(_self: object, _sample: object) -> None:
        calls.append(1)
        raise ZeroDivisionError

    monkeypatch.setattr(LossSpike, "judge", broken)
    simulation = Simulation()
    simulation.strict = False
    healthy(simulation, 50)
    healthy(simulation, 1, loss=float("nan"))
    assert len(calls) == MAX_FAULTS
    assert simulation.engine.faults == {"loss_spike": MAX_FAULTS}
    assert [finding.rule for finding in simulation.opened] == ["nonfinite_loss"]


def test_a_rule_can_be_switched_off_and_told_other_thresholds() -> None:
    settings = {"nonfinite_loss": {"enabled": False}, "data_starvation": {"info_ratio": 0.01, "warning_ratio": 0.02}}
    simulation = Simulation(settings=settings)
    healthy(simulation, 100)
    healthy(simulation, 1, loss=float("nan"))
    (finding,) = simulation.opened
    assert (finding.rule, finding.severity, finding.threshold) == ("data_starvation", "warning", 0.02)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rules\.loss_spike.*ratio"):
        Engine({"loss_spike": {"ratio": -1.0}})


def test_two_runs_do_not_share_a_baseline() -> None:
    simulation = Simulation()
    healthy(simulation, 200)
    simulation.run.directory = "another"
    healthy(simulation, 1, grad_norm=1e6, loss=1e6)
    assert simulation.opened == [], "the other run has only just begun"
    simulation.run.directory = "sim"
    healthy(simulation, 1, grad_norm=1e6, loss=1e6)
    assert {finding.rule for finding in simulation.opened} == {"exploding_gradient", "loss_spike"}


def test_the_end_of_a_run_closes_its_findings_and_forgets_it() -> None:
    simulation = Simulation()
    healthy(simulation, 60)
    healthy(simulation, 1, loss=float("inf"))
    (closed,) = simulation.engine.end(simulation.run)
    assert (closed.rule, closed.state) == ("nonfinite_loss", "closed")
    assert simulation.engine.end(simulation.run) == []


def test_a_finding_has_the_wall_time_of_its_step() -> None:
    simulation = Simulation()
    healthy(simulation, 9)
    healthy(simulation, 1, loss=float("inf"))
    (finding,) = simulation.opened
    assert finding.time == pytest.approx(1e9 + 1.0)


def test_rules_have_no_clock_no_files_and_no_threads() -> None:
    """Pure: what a rule says depends on the steps that it was shown, and on nothing else."""
    allowed = {
        "__future__",
        "abc",
        "array",
        "bisect",
        "collections",
        "contextlib",
        "enum",
        "functools",
        "inspect",
        "itertools",
        "math",
    }
    allowed |= {"msgspec", "re", "statistics", "sys", "typing", "gpuwatch", "gpuwatch_hooks"}
    for path in Path(gpuwatch.detectors.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed, path
            assert not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"open", "print"}), (
                path
            )
