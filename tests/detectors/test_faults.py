"""Faults are found, in how many steps, and with the right evidence; each rule also stays quiet where it says it does."""

from __future__ import annotations

import math
import random

import pytest

from gpuwatch.state.findings import Finding
from tests.detectors.simulate import Simulation, healthy_values, rows

LAYERS = ["stem.weight", "block1.weight", "block2.weight", "head.weight"]
FAULT = 600


class Run:
    """A healthy run up to FAULT, then whatever the test does to it."""

    def __init__(self, seed: int = 1, layers: list[str] | None = None, settings: dict | None = None) -> None:
        self.rng = random.Random(seed)
        self.simulation = Simulation(layers or LAYERS, settings=settings)

    def play(self, steps: int, rate: float = 0.1, layer_factors: tuple[float, ...] = (), **changes: float | str) -> None:
        """`changes`: a number is a factor; "=x" sets the value."""
        for _ in range(steps):
            number = self.simulation.step + 1
            values = healthy_values(number, self.rng)
            for name, change in changes.items():
                values[name] = float(change[1:]) if isinstance(change, str) else values.get(name, 1.0) * change
            norms = [0.5 * factor for factor in layer_factors or (1.0,) * 4]
            self.simulation.advance(values, (rate,), [rows(number, "gradient", norms)])

    def only(self, rule: str) -> Finding:
        """The one finding of this rule; nothing was found before the fault."""
        (finding,) = self.simulation.of(rule)
        assert all(found.step >= FAULT for found in self.simulation.opened)
        return finding


@pytest.fixture
def run() -> Run:
    made = Run()
    made.play(FAULT - 1)
    return made


def test_a_nan_loss_is_critical_at_once(run: Run) -> None:
    run.play(1, loss="=nan")
    finding = run.only("nonfinite_loss")
    assert (finding.severity, finding.step, finding.first_step) == ("critical", FAULT, FAULT)
    assert math.isnan(finding.value)
    run.play(200, loss="=inf")
    assert len(run.simulation.of("nonfinite_loss")) == 1, "one finding an episode"


def test_an_episode_ends_when_the_run_recovers(run: Run) -> None:
    run.play(3, loss="=inf")
    run.play(19)
    assert run.only("nonfinite_loss").state == "active"
    run.play(1)
    finding = run.only("nonfinite_loss")
    assert (finding.state, finding.last_step) == ("closed", FAULT + 2)


def test_nonfinite_gradients_name_the_layer_nearest_the_output(run: Run) -> None:
    number = run.simulation.step + 1
    table = rows(number, "gradient", [1.0] * 4, nonfinite=[3.0, 0.0, 5.0, 0.0])
    run.simulation.advance(healthy_values(number, run.rng) | {"grad_nonfinite_count": 8.0}, tables=[table])
    finding = run.only("nonfinite_gradient")
    assert (finding.severity, finding.layer, finding.value) == ("critical", "block2.weight", 8.0)


def test_when_every_layer_is_bad_none_is_blamed(run: Run) -> None:
    number = run.simulation.step + 1
    table = rows(number, "gradient", [1.0] * 4, nonfinite=[1.0] * 4)
    run.simulation.advance(healthy_values(number, run.rng) | {"grad_nonfinite_count": 4.0}, tables=[table])
    assert run.only("nonfinite_gradient").layer == ""


@pytest.mark.parametrize("field", ["grad_nonfinite_count", "loss"])
def test_a_scaler_excuses_four_bad_steps_and_not_five(run: Run, field: str) -> None:
    overflow: dict[str, float | str] = {"loss_scale": "=1024", "skipped": "=1", field: "=inf"}
    rule = "nonfinite_gradient" if field == "grad_nonfinite_count" else "nonfinite_loss"
    run.play(4, **overflow)
    run.play(1)
    run.play(4, **overflow)
    assert run.simulation.of(rule) == []
    run.play(1, **overflow)
    assert run.only(rule).step == FAULT + 9


@pytest.mark.parametrize("excuse", [{"loss_scale": "=1024"}, {"skipped": "=1"}, {"loss_scale": "=1", "skipped": "=1"}])
def test_half_an_excuse_is_none(run: Run, excuse: dict[str, str]) -> None:
    run.play(1, grad_nonfinite_count="=5", **excuse)
    assert run.only("nonfinite_gradient").step == FAULT


def test_an_explosion_is_seen_at_its_first_step_and_names_where_it_began(run: Run) -> None:
    run.play(1, layer_factors=(1.0, 1.0, 8.0, 1.0))  # one layer leaves its range; the global norm does not show it yet
    run.play(1, grad_norm=500.0, layer_factors=(2.0, 300.0, 900.0, 2.0))
    finding = run.only("exploding_gradient")
    assert (finding.severity, finding.step) == ("critical", FAULT + 1)
    assert (finding.layer, finding.first_step) == ("block2.weight", FAULT)
    assert ", first in block2.weight" in finding.summary
    assert finding.value == pytest.approx(500.0, rel=0.9)


def test_severity_follows_size_and_persistence() -> None:
    def worst(factor: float, steps: int) -> str:
        run = Run()
        run.play(FAULT - 1, grad_norm=1.0)
        run.play(steps, grad_norm=factor)
        found = run.simulation.of("exploding_gradient")
        return found[0].severity if found else ""

    assert worst(1.2, 100) == ""
    assert worst(400.0, 1) == "critical"
    assert worst(30.0, 1) == "warning"
    assert worst(30.0, 5) == "critical"


def test_a_small_single_spike_is_only_info_and_a_smooth_run_shows_a_sustained_one() -> None:
    simulation = Simulation()
    rng = random.Random(5)

    def advance(steps: int, factor: float) -> None:
        for _ in range(steps):
            simulation.advance({"grad_norm": factor * math.exp(rng.gauss(0.0, 0.1)), "loss": 1.0})

    advance(300, 1.0)
    advance(1, 5.0)
    assert [finding.severity for finding in simulation.opened] == ["info"]
    advance(40, 1.0)
    advance(3, 2.0)
    assert [finding.severity for finding in simulation.opened] == ["info", "warning"]
    assert simulation.opened[1].first_step == 342


@pytest.mark.parametrize(("at", "found"), [(49, set()), (50, set()), (52, {"exploding_gradient", "loss_spike"})])
def test_nothing_is_judged_in_the_warm_up(at: int, found: set[str]) -> None:
    """Trap 37: also after a restart. The twin, two steps later, shows that the jump itself is one."""
    simulation = Simulation()
    for step in range(1, at + 1):
        simulation.advance({"grad_norm": 1e6 if step == at else 1.0, "loss": 1e6 if step == at else 1.0})
    assert {finding.rule for finding in simulation.opened} == found


def test_skipped_steps_are_not_samples(run: Run) -> None:
    run.play(4, grad_norm=1e6, loss=1e3, loss_scale="=1024", skipped="=1")
    assert run.simulation.opened == []


def test_a_broken_learning_rate_is_found_and_named_as_the_cause(run: Run) -> None:
    run.play(1, rate=10.0)
    run.play(5, rate=10.0, grad_norm=20.0, loss=4.0, update_ratio=300.0)
    found = {finding.rule: finding for finding in run.simulation.opened}
    assert {"exploding_gradient", "loss_spike", "update_ratio_high"} <= set(found)
    assert found["exploding_gradient"].step <= FAULT + 2
    assert "from 0.1 to 10 at step 600" in found["exploding_gradient"].summary
    assert "from 0.1 to 10 at step 600" in found["update_ratio_high"].summary


def test_a_restart_of_the_schedule_begins_a_new_baseline() -> None:
    run = Run()
    run.play(FAULT, rate=0.1)
    run.play(200, rate=0.001, grad_norm=0.02, loss=0.3)
    run.play(300, rate=0.1)  # back to what it was: twenty times the norm and three times the loss of the cold phase
    assert run.simulation.opened == []


def test_without_the_known_rate_the_same_jump_is_a_fault() -> None:
    """The twin: the same series with a rate that the run has never had."""
    run = Run()
    run.play(FAULT + 200, rate=0.001, grad_norm=0.02, loss=0.3)
    run.play(20, rate=0.1)
    assert {finding.rule for finding in run.simulation.opened} >= {"exploding_gradient", "loss_diverging"}


def test_a_loss_spike(run: Run) -> None:
    run.play(1, loss=6.0)
    finding = run.only("loss_spike")
    assert (finding.severity, finding.step) == ("warning", FAULT)
    assert 3.0 < finding.value < 12.0
    run.play(30)
    assert run.only("loss_spike").state == "closed"
    assert run.simulation.of("loss_diverging") == []


def test_a_shift_of_the_loss_diverges_within_three_steps(run: Run) -> None:
    run.play(10, loss=2.5)
    finding = run.only("loss_diverging")
    assert finding.step <= FAULT + 5
    assert finding.severity == "warning"
    assert finding.threshold == 1.15
    assert finding.value > finding.threshold


def test_losing_everything_that_was_learned_is_critical() -> None:
    run = Run()
    run.play(2000)
    run.play(40, loss=12.0)
    (finding,) = run.simulation.of("loss_diverging")
    assert finding.severity == "critical"
    assert "above where the run began" in finding.summary


def test_a_slow_drift_is_found_by_its_medians() -> None:
    rng = random.Random(8)
    simulation = Simulation()
    for step in range(1, 1500):
        drift = 1.0 + max(0, step - 1000) / 300.0
        simulation.advance({"loss": drift * math.exp(rng.gauss(0.0, 0.1))})
    (finding,) = simulation.of("loss_diverging")
    assert 1020 < finding.step < 1500
    assert 990 < finding.first_step < finding.step
    assert finding.threshold == pytest.approx(1.15)
    assert finding.value > finding.threshold
    assert simulation.of("loss_spike") == []


def test_an_update_of_half_the_weights_is_critical_at_once(run: Run) -> None:
    run.play(1, update_ratio="=0.7")
    finding = run.only("update_ratio_high")
    assert (finding.severity, finding.value, finding.step) == ("critical", 0.7, FAULT)


def test_a_high_update_ratio_needs_three_measurements_and_names_the_fastest_matrix(run: Run) -> None:
    names = ["a.weight", "b.weight", "b.bias"]
    run = Run(layers=names)
    run.play(FAULT - 1)
    for _ in range(3):
        number = run.simulation.step + 1
        tables = [rows(number, "weight", [1.0, 1.0, 0.001]), rows(number, "update", [0.1, 0.4, 0.1])]
        run.simulation.advance(healthy_values(number, run.rng) | {"update_ratio": 0.2}, tables=tables)
        run.play(5, update_ratio="=nan")  # not measured
    finding = run.only("update_ratio_high")
    assert (finding.severity, finding.layer, finding.first_step) == ("warning", "b.weight", FAULT)
    assert finding.step == FAULT + 12


def amp(step: int, rng: random.Random, scale: float, skipped: bool) -> dict[str, float]:
    fields = {"loss_scale": scale, "skipped": float(skipped), "loss_scale_backoffs": float(skipped)}
    return healthy_values(step, rng) | fields


def test_a_scaler_that_skips_step_after_step() -> None:
    rng, simulation = random.Random(2), Simulation()
    for step in range(1, 106):
        simulation.advance(amp(step, rng, 1024.0, skipped=step > 100))
    (finding,) = simulation.of("loss_scale_collapse")
    assert (finding.severity, finding.step, finding.first_step) == ("warning", 105, 101)


def test_a_scale_of_one_after_back_offs_is_critical() -> None:
    rng, simulation = random.Random(2), Simulation()
    scale = 4.0
    for step in range(1, 40):
        skipped = step % 10 == 0
        scale = scale / 2 if skipped else scale
        simulation.advance(amp(step, rng, scale, skipped))
    (finding,) = simulation.of("loss_scale_collapse")
    assert (finding.severity, finding.step, finding.value) == ("critical", 20, 1.0)


def test_a_skip_rate_of_ten_percent() -> None:
    rng, simulation = random.Random(2), Simulation()
    for step in range(1, 400):
        simulation.advance(amp(step, rng, 1024.0, skipped=step > 250 and step % 10 == 0))
    (finding,) = simulation.of("amp_skip_rate")
    assert finding.threshold < finding.value < 0.1
    assert 250 < finding.step < 400


def test_clipping_of_scaled_gradients(run: Run) -> None:
    run.play(1, clipped_while_scaled="=1", loss_scale="=1")
    assert run.simulation.of("unscaled_clipping") == []
    run.play(1, clipped_while_scaled="=1", loss_scale="=1024", clip_max_norm="=1")
    finding = run.only("unscaled_clipping")
    assert "acts as 0.000977" in finding.summary
    assert "unscale_" in finding.action


@pytest.mark.parametrize(("share", "severity"), [(0.10, ""), (0.20, "info"), (0.50, "warning")])
def test_data_starvation(share: float, severity: str) -> None:
    simulation = Simulation()
    for _ in range(200):
        simulation.advance({"step_seconds": 0.1, "data_seconds": 0.1 * share})
    assert [finding.severity for finding in simulation.of("data_starvation")] == ([severity] if severity else [])


def test_one_long_wait_at_the_start_of_each_epoch_is_no_starvation() -> None:
    simulation = Simulation()
    for step in range(1000):
        wait = 5.0 if step % 100 == 0 else 0.001
        simulation.advance({"step_seconds": 0.1 + wait, "data_seconds": wait})
    assert simulation.opened == []


@pytest.mark.parametrize(("share", "severity"), [(0.01, ""), (0.07, "info"), (0.2, "warning")])
def test_hook_overhead(share: float, severity: str) -> None:
    simulation = Simulation()
    for _ in range(200):
        simulation.advance({"step_seconds": 0.01, "hook_seconds": 0.01 * share})
    assert [finding.severity for finding in simulation.of("hook_overhead")] == ([severity] if severity else [])


def test_hook_overhead_that_wavers_about_its_threshold_is_one_finding() -> None:
    simulation = Simulation()
    for step in range(3000):
        share = 0.05 * (1.0 + 0.1 * math.sin(step / 80))
        simulation.advance({"step_seconds": 0.01, "hook_seconds": 0.01 * share})
    (found,) = simulation.of("hook_overhead")
    assert found.state == "active"
    for _ in range(1000):
        simulation.advance({"step_seconds": 0.01, "hook_seconds": 0.0001})
    assert found.state == "closed"


def test_records_that_were_overwritten(run: Run) -> None:
    run.play(5)
    run.simulation.run.counters.add_dropped("overwritten", 7)
    run.play(1)
    finding = run.only("records_overwritten")
    assert (finding.value, finding.step) == (7.0, FAULT + 5)
    run.play(19)
    assert finding.state == "active"
    run.play(1)
    assert finding.state == "closed"


def vanish(ratio: float, update: float, names: list[str] | None = None, numels: list[int] | None = None) -> Simulation:
    """Twelve layers whose relative gradients fall by `ratio` from last to first; the first move by `update`."""
    names = names or [f"l{i}.weight" for i in range(12)]
    count = len(names)
    simulation = Simulation(names, numels)
    for step in range(1, 401):
        gradients = [ratio ** (1.0 - i / (count - 1)) for i in range(count)]
        updates = [update * 10.0 * (1.0 if i < count // 3 else 1e3) for i in range(count)]
        tables = [rows(step, "gradient", gradients)]
        if step % 7 == 0:
            tables += [rows(step, "weight", [10.0] * count), rows(step, "update", updates)]
        simulation.advance({"grad_norm": 1.0}, tables=tables)
    return simulation


def test_vanishing_gradients_are_found_after_fifteen_samples() -> None:
    (finding,) = vanish(1e-6, 1e-9).of("vanishing_gradient")
    assert (finding.layer, finding.severity) == ("l0.weight", "warning")
    assert 150 <= finding.step <= 170


def test_a_steep_profile_that_still_learns_is_not_vanishing() -> None:
    """Adam rescales: small gradients, healthy updates."""
    assert vanish(1e-6, 1e-4).opened == []


def test_small_updates_without_a_profile_are_not_vanishing() -> None:
    assert vanish(0.5, 1e-12).opened == []


def test_what_is_no_matrix_does_not_count() -> None:
    names = [f"norm{i}.weight" for i in range(6)] + [f"l{i}.bias" for i in range(6)]
    assert vanish(1e-6, 1e-9, names, [64] * 12).opened == []


def first_update(ratio: float, rms: float) -> Simulation:
    """A first step that changes 4,096 weights of this root mean square by `ratio` of their norm."""
    simulation = Simulation(["a.weight"], [4096])
    simulation.advance({"loss": 1.0, "update_ratio": ratio, "weight_norm": 64.0 * rms})
    return simulation


def test_a_first_step_that_replaces_the_weights_is_critical_and_one_from_nought_is_not() -> None:
    (finding,) = first_update(8.0, 0.1).opened
    assert (finding.rule, finding.severity, finding.step) == ("update_ratio_high", "critical", 1)
    assert first_update(8.0, 1e-4).opened == []
    assert first_update(2.0, 0.1).opened == []
