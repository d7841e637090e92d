"""The rules about the loop, mixed precision and slow changes: each finds its fault, closes again, and spares its neighbours."""

from __future__ import annotations

import math
import random

import pytest

from tests.detectors.simulate import Simulation, cells, healthy_values, histogram, rows

LAYERS = ["stem.weight", "stem.bias", "block.weight", "head.weight"]
SIZES = [4096, 64, 4096, 640]


def simulation(seed: int = 3, **settings: dict) -> Simulation:
    made = Simulation(LAYERS, SIZES, settings=settings or None)
    made.rng = random.Random(seed)
    return made


def play(sim: Simulation, steps: int, *, rate: float = 0.1, tables=None, **fixed: float) -> None:
    """Healthy steps with some fields fixed; `tables(step)` gives their tables."""
    for _ in range(steps):
        number = sim.step + 1
        sim.advance(healthy_values(number, sim.rng) | fixed, (rate,), tables(number) if tables else None)


def only(sim: Simulation, rule: str):
    (finding,) = sim.of(rule)
    return finding


# ------------------------------------------------------------------------------------------------------- dead_layer
def gradients(zero_ratios: list[float]):
    """Tables of gradients with these shares of zeros; a share of 1 also has the norm 0."""
    return lambda step: [cells(step, "gradient", [{"norm": 0.0 if z >= 1.0 else 0.5, "zero_ratio": z} for z in zero_ratios])]


def test_a_layer_without_any_gradient_is_dead_and_may_come_alive_again() -> None:
    sim = simulation()
    play(sim, 100, tables=gradients([0.1, 0.1, 0.2, 0.0]))
    play(sim, 100, tables=gradients([0.1, 0.1, 1.0, 0.0]))
    finding = only(sim, "dead_layer")
    assert (finding.layer, finding.value, finding.severity) == ("block.weight", 1.0, "warning")
    assert 145 <= finding.step <= 160
    assert 95 <= finding.first_step <= 106
    assert "block.weight is zero in every entry" in finding.summary
    play(sim, 30, tables=gradients([0.1, 0.1, 0.2, 0.0]))
    assert finding.state == "closed"


@pytest.mark.parametrize(
    "zeros",
    [[0.97, 0.1, 0.2, 0.0], [0.1, 1.0, 0.2, 0.0], [1.0, 1.0, 1.0, 1.0], [0.1, 0.1, 0.85, 0.0]],
    ids=["sparse inputs", "a bias", "everything: the loss is satisfied", "many zeros, not too many"],
)
def test_what_looks_dead_and_is_not(zeros: list[float]) -> None:
    sim = simulation()
    play(sim, 300, tables=gradients(zeros))
    assert sim.of("dead_layer") == []


def test_mostly_dead_is_dead_behind_the_first_matrix_and_experts_are_spared() -> None:
    sim = simulation()
    play(sim, 100, tables=gradients([0.1, 0.1, 0.95, 0.0]))
    assert only(sim, "dead_layer").value == pytest.approx(0.95)
    assert "block.weight is zero in 95.0% of its entries" in only(sim, "dead_layer").summary
    sim = Simulation(["stem.weight", "experts.3.weight", "head.weight"])
    sim.rng = random.Random(0)
    play(sim, 200, tables=gradients([0.0, 1.0, 0.0]))
    assert sim.of("dead_layer") == []


# ------------------------------------------------------------------------------------------------------ loss_plateau
def test_a_loss_that_stands_still_is_a_plateau_and_says_whether_it_ever_came_down() -> None:
    for start, words in ((2.3, "where it began"), (9.0, "at 0.2")):
        sim, rng = simulation(), random.Random(1)
        for step in range(1, 1001):
            loss = max(2.3, start - step / 20) * math.exp(rng.gauss(0.0, 0.03))
            sim.advance({"loss": loss})
        finding = only(sim, "loss_plateau")
        assert (finding.severity, finding.state) == ("info", "active")
        assert words in finding.summary


def test_a_slow_but_steady_fall_is_none_and_a_plateau_that_ends_is_closed() -> None:
    sim, rng = simulation(), random.Random(1)
    for step in range(1, 3001):
        sim.advance({"loss": 2.3 * math.exp(-step / 3000.0) * math.exp(rng.gauss(0.0, 0.03))})
    assert sim.of("loss_plateau") == []
    sim = simulation()
    for step in range(1, 3001):
        sim.advance({"loss": (2.3 if step < 1500 else 2.3 * math.exp(-(step - 1500) / 700.0)) * math.exp(rng.gauss(0.0, 0.03))})
    assert only(sim, "loss_plateau").state == "closed"


# --------------------------------------------------------------------------------------------------- update_ratio_low
def test_updates_that_never_were_anything() -> None:
    sim = simulation()
    play(sim, 40, update_ratio=1e-9)
    finding = only(sim, "update_ratio_low")
    assert (finding.severity, finding.threshold) == ("warning", 1e-7)
    assert finding.step <= 30
    play(sim, 10, update_ratio=1e-3)
    assert finding.state == "closed"


@pytest.mark.parametrize("case", ["converged", "warm-up", "rate 0", "small but alive"])
def test_small_updates_that_are_no_fault(case: str) -> None:
    sim = simulation()
    for step in range(1, 401):
        ratio = {"converged": 10.0 ** (-3 - step / 40), "small but alive": 1e-6}.get(case, 1e-9)
        rate = {"warm-up": 1e-9 * step, "rate 0": 0.0}.get(case, 0.1)
        sim.advance(healthy_values(step, sim.rng) | {"update_ratio": ratio}, (rate,))
    assert sim.of("update_ratio_low") == []


# ------------------------------------------------------------------------------------------------------ amp_underflow
def with_scale(scale: float, counts: dict[int, int], *, steps: int = 30, zeros: float = 0.0, **fields: float) -> Simulation:
    sim = simulation()
    for step in range(1, steps + 1):
        tables = [cells(step, "gradient", [{"norm": 1.0, "zero_ratio": zeros}]), histogram(step, counts)]
        values = healthy_values(step, sim.rng) | {"loss_scale": scale, "grad_absmax": 2.0 ** max(counts)}
        values |= fields
        sim.advance({name: value for name, value in values.items() if value >= 0.0}, tables=tables)
    return sim


def test_entries_that_float16_loses_are_counted_exactly_and_the_scale_that_saves_them_is_named() -> None:
    sim = with_scale(1.0, {-30: 300, -21: 100, -20: 100, -10: 500})
    finding = only(sim, "amp_underflow")
    assert (finding.severity, finding.value) == ("warning", pytest.approx(0.4))
    assert "a scale of 1024 would save them" in finding.summary, "2^-30 times 2^10 is 2^-20"
    assert "65.5e3" not in finding.summary
    room = 65504 / (2.0**-10 * 1024)
    assert f"{room:.3g}" in finding.summary


def test_the_scale_moves_the_limit() -> None:
    assert with_scale(2.0**10, {-30: 300, -21: 100, -20: 100, -10: 500}).of("amp_underflow") == []
    assert only(with_scale(2.0**9, {-30: 300, -21: 100, -20: 100, -10: 500}), "amp_underflow").value == pytest.approx(0.3)


def test_a_range_that_no_scale_fits() -> None:
    assert "use bfloat16" in only(with_scale(1.0, {-40: 500, 8: 500}), "amp_underflow").summary


def test_float16_without_a_scaler_has_the_scale_one_and_bfloat16_loses_nothing() -> None:
    lost = {-30: 500, -10: 500}
    assert only(with_scale(-1.0, lost, autocast_dtype=1.0), "amp_underflow").value == pytest.approx(0.5)
    assert with_scale(-1.0, lost, autocast_dtype=2.0).of("amp_underflow") == []


def test_zeros_are_not_lost_entries() -> None:
    assert with_scale(1.0, {-48: 900, -10: 100}, zeros=0.9).of("amp_underflow") == []
    assert only(with_scale(1.0, {-48: 900, -10: 100}, zeros=0.5), "amp_underflow").value == pytest.approx(0.8)


def test_a_run_that_has_converged_loses_nothing_that_matters() -> None:
    sim = simulation()
    for step in range(1, 200):
        loss = 1.0 if step < 60 else 1e-4
        table = [cells(step, "gradient", [{"norm": 1.0}]), histogram(step, {-12: 100} if step < 60 else {-40: 100})]
        sim.advance({"loss": loss, "loss_scale": 1024.0, "grad_absmax": 1e-3}, tables=table)
    assert sim.of("amp_underflow") == []


# ---------------------------------------------------------------------------------------- told by events of the hooks
def test_gradients_that_are_kept() -> None:
    sim = simulation()
    play(sim, 20)
    sim.tell("gradients_kept", 19, 1.0, "stem.weight")
    play(sim, 10)
    finding = only(sim, "gradients_not_zeroed")
    assert (finding.severity, finding.first_step, finding.step, finding.layer) == ("critical", 19, 23, "stem.weight")
    sim.tell("gradients_kept", 31, 0.0, "stem.weight")
    play(sim, 10)
    assert finding.state == "closed"


def test_gradients_that_were_kept_for_a_moment_only() -> None:
    sim = simulation()
    play(sim, 20)
    sim.tell("gradients_kept", 19, 1.0, "stem.weight")
    play(sim, 1)
    sim.tell("gradients_kept", 22, 0.0, "stem.weight")
    play(sim, 50)
    assert sim.of("gradients_not_zeroed") == []


def test_validation_in_train_mode_is_told_at_the_second_pass_and_closes_with_eval_mode() -> None:
    sim = simulation()
    for value in (1.0, 1.0, 0.0, 0.0):
        play(sim, 50)
        sim.tell("validation_pass", sim.step, value)
        play(sim, 1)
    finding = only(sim, "train_mode_validation")
    assert (finding.first_step, finding.step, finding.value, finding.state) == (50, 102, 2, "closed")


def test_one_pass_in_train_mode_is_a_recalibration_and_passes_in_eval_mode_are_right() -> None:
    for modes in ((0.0, 0.0, 1.0), (0.0, 0.0, 0.0)):
        sim = simulation()
        for value in modes:
            play(sim, 50)
            sim.tell("validation_pass", sim.step, value)
        play(sim, 50)
        assert sim.of("train_mode_validation") == []


def test_it_closes_when_nothing_is_validated_any_more() -> None:
    sim = simulation()
    for _ in range(3):
        play(sim, 50)
        sim.tell("validation_pass", sim.step, 1.0)
    play(sim, 300)
    assert only(sim, "train_mode_validation").state == "closed"


# ------------------------------------------------------------------------------------------------ eval_mode_training
def test_training_in_eval_mode_from_one_step_on() -> None:
    sim = simulation()
    play(sim, 50, training_mode=1.0)
    play(sim, 30, training_mode=0.0)
    finding = only(sim, "eval_mode_training")
    assert (finding.first_step, finding.step, finding.severity) == (51, 60, "warning")
    assert "still in train mode before" in finding.summary
    play(sim, 5, training_mode=1.0)
    assert finding.state == "closed"


def test_a_few_steps_in_eval_mode_are_none() -> None:
    sim = simulation()
    for _ in range(20):
        play(sim, 9, training_mode=0.0)
        play(sim, 1, training_mode=1.0)
    assert sim.of("eval_mode_training") == []


# -------------------------------------------------------------------------------------------------- unused_parameters
def with_gaps(*missing: int):
    """Gradient tables in which these tensors have none."""
    return lambda step: [rows(step, "gradient", [math.nan if i in missing else 0.5 for i in range(len(LAYERS))])]


@pytest.mark.parametrize(("missing", "severity", "layer"), [(2, "warning", "block.weight"), (1, "info", "stem.bias")])
def test_a_tensor_that_never_gets_a_gradient(missing: int, severity: str, layer: str) -> None:
    sim = simulation()
    play(sim, 60, tables=with_gaps(missing), tensors_without_gradient=1.0)
    finding = only(sim, "unused_parameters")
    assert (finding.severity, finding.layer, finding.step, finding.first_step) == (severity, layer, 50, 1)
    play(sim, 5, tables=with_gaps(), tensors_without_gradient=0.0)
    assert finding.state == "closed"


def test_heads_that_take_turns_are_used() -> None:
    sim = simulation()
    for step in range(1, 200):
        play(sim, 1, tables=with_gaps(2 + step % 2), tensors_without_gradient=1.0)
    assert sim.of("unused_parameters") == []


# ---------------------------------------------------------------------------------------------- parameters_not_updated
def test_an_optimizer_whose_tensors_never_get_a_gradient() -> None:
    sim = simulation()
    for _ in range(10):
        sim.advance({"loss": 1.0, "micro_batches": 1.0, "tensors_without_gradient": 4.0})
    finding = only(sim, "parameters_not_updated")
    assert (finding.severity, finding.step, finding.first_step) == ("critical", 5, 1)


NO_BACKWARD = {"tensors_without_gradient": 4.0, "weight_norm": 10.0}
FROZEN = {"loss": 1.0, "micro_batches": 1.0, "tensors_without_gradient": 0.0, "weight_norm": 10.0}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (NO_BACKWARD, ("no backward pass came before the 15 steps up to 15", "none of the 4 parameters had a gradient")),
        (FROZEN, ("none of the 4 parameters had a gradient in the 15 steps up to 15", "requires_grad=False")),
        (
            NO_BACKWARD | {"tensors_without_gradient": 0.0},
            ("no backward pass came before the 15 steps up to 15", "requires_grad=False"),
        ),
    ],
    ids=["backward forgotten", "everything frozen", "both"],
)
def test_steps_without_any_gradient_are_told_with_what_is_missing(values: dict[str, float], said: tuple[str, ...]) -> None:
    sim = simulation()
    for _ in range(40):
        sim.advance(values)
    finding = only(sim, "parameters_not_updated")
    assert (finding.severity, finding.step, finding.first_step, finding.value) == ("critical", 15, 1, 15)
    assert all(words in finding.summary.lower() for words in (word.lower() for word in said)), finding.summary
    assert "backward()" in finding.action
    play(sim, 5, tables=stuck(), tensors_without_gradient=0.0)
    assert finding.state == "closed"


@pytest.mark.parametrize(
    "steps",
    [
        [NO_BACKWARD] * 14 + [{"grad_norm": 1.0, "tensors_without_gradient": 0.0}],
        [FROZEN | {"skipped": 1.0}],
        [NO_BACKWARD | {"closure_calls": 1.0}],
        [NO_BACKWARD | {"update_ratio": 1e-9}],
        [NO_BACKWARD | {"weight_norm": 10.0 + place / 8} for place in range(20)],
        [NO_BACKWARD | {"weight_norm": 10.0 + place / 8} for place in range(3)] + [{"tensors_without_gradient": 4.0}] * 297,
        [{"loss": 1.0, "micro_batches": 1.0}],
        [{"tensors_without_gradient": 2.0, "grad_norm": 1.0}],
    ],
    ids=[
        "an optimizer that takes turns with another",
        "skipped by the loss scaler",
        "an optimizer without derivatives, with a closure",
        "an optimizer that is given its gradients",
        "weights that something else trains",
        "weights that are looked at seldom",
        "gradients that cannot be read",
        "one group frozen",
    ],
)
def test_steps_without_a_gradient_that_are_no_fault(steps: list[dict[str, float]]) -> None:
    sim = simulation()
    for number in range(300):
        sim.advance(steps[number % len(steps)])
    assert sim.of("parameters_not_updated") == []


def test_a_rank_without_parameters_has_nothing_to_update() -> None:
    sim = Simulation()
    for _ in range(40):
        sim.advance(FROZEN)
    assert sim.of("parameters_not_updated") == []


def test_a_skipped_step_neither_counts_nor_ends_the_count() -> None:
    sim = simulation()
    for number in range(40):
        sim.advance(NO_BACKWARD | {"skipped": float(number % 2)})
    finding = only(sim, "parameters_not_updated")
    assert (finding.step, finding.value) == (29, 15)


def test_an_optimizer_that_holds_a_layer_which_was_replaced() -> None:
    sim = simulation()
    play(sim, 3, tensors_without_gradient=1.0)
    sim.tell("untrained_parameters", 4, 2.0, "head.weight")
    play(sim, 5, tensors_without_gradient=1.0)
    finding = only(sim, "parameters_not_updated")
    assert (finding.layer, finding.severity, finding.first_step) == ("head.weight", "critical", 1)
    play(sim, 5, tensors_without_gradient=0.0, tables=stuck())
    assert finding.state == "closed"


def test_a_rate_of_nought_that_lasts_is_told_and_the_first_step_of_a_warm_up_is_not() -> None:
    sim = simulation()
    play(sim, 5, rate=0.0)
    play(sim, 50, rate=0.1)
    assert sim.of("parameters_not_updated") == []
    play(sim, 20, rate=0.0)
    finding = only(sim, "parameters_not_updated")
    assert (finding.severity, finding.first_step) == ("warning", 56)


def stuck(*still: int, gradient: float = 0.5):
    """Tables in which these matrices do not change."""
    return lambda step: [
        rows(step, "gradient", [gradient] * len(LAYERS)),
        rows(step, "weight", [10.0] * len(LAYERS)),
        rows(step, "update", [0.0 if i in still else 0.01 for i in range(len(LAYERS))]),
    ]


def test_a_matrix_that_does_not_change_despite_its_gradient() -> None:
    sim = simulation()
    play(sim, 30, tables=stuck())
    play(sim, 10, tables=stuck(2))
    finding = only(sim, "parameters_not_updated")
    assert (finding.layer, finding.severity, finding.step) == ("block.weight", "critical", 35)
    play(sim, 3, tables=stuck())
    assert finding.state == "closed"


def test_what_may_stand_still() -> None:
    sim = simulation()
    play(sim, 50, tables=stuck(1))  # a bias in front of a BatchNorm: its update is lost to rounding
    play(sim, 50, tables=stuck(0, 2, 3), grad_norm=1e-9)  # a run that has converged
    play(sim, 50, tables=stuck(0, 2, 3), rate=0.0, grad_norm=1.0, loss_scale=1.0, skipped=1.0)
    assert sim.of("parameters_not_updated") == []


# ------------------------------------------------------------------------------------------------------ no_weight_decay
@pytest.mark.parametrize(("decay", "growth", "found"), [(0.0, 2.0, 1), (0.01, 2.0, 0), (0.0, 1.2, 0), (math.nan, 2.0, 0)])
def test_weights_that_grow_without_decay(decay: float, growth: float, found: int) -> None:
    sim = simulation()
    for step in range(1, 401):
        norm = 10.0 * (1.0 + (growth - 1.0) * min(1.0, step / 300))
        sim.advance(healthy_values(step, sim.rng) | {"weight_norm": norm}, decay=decay)
    assert [finding.severity for finding in sim.of("no_weight_decay")] == ["info"] * found


# ------------------------------------------------------------------------------------------------- step_time_regression
def steps_of(sim: Simulation, count: int, seconds: float, **more: float) -> None:
    for _ in range(count):
        sim.advance({"step_seconds": seconds * math.exp(sim.rng.gauss(0.0, 0.1)), **more})


def test_steps_that_take_three_times_as_long_are_info_at_first_and_a_warning_when_it_lasts() -> None:
    sim = simulation()
    steps_of(sim, 400, 0.1)
    steps_of(sim, 200, 0.3)
    finding = only(sim, "step_time_regression")
    assert (finding.severity, finding.state) == ("info", "active")
    assert 400 < finding.first_step < 440
    steps_of(sim, 700, 0.3)  # the clock of the simulation goes by 0.1 s a step
    assert finding.severity == "warning"
    steps_of(sim, 200, 0.1)
    assert finding.state == "closed"


def test_slow_steps_that_are_no_regression() -> None:
    sim = simulation()
    for epoch in range(12):
        steps_of(sim, 95, 0.1)
        steps_of(sim, 5, 8.0)  # validation and a checkpoint
        steps_of(sim, 1, 3.0 + epoch, data_seconds=2.9 + epoch)
    steps_of(sim, 300, 0.3, data_seconds=0.21)  # that is data_starvation's
    assert sim.of("step_time_regression") == []


# --------------------------------------------------------------------------------------------------- adam_second_moment
def adam(*ratios: float):
    """Tables in which these matrices have these ratios; the bias is not measured."""
    return lambda step: [rows(step, "second_moment", [ratios[0], 50.0, ratios[1], math.nan])]


@pytest.mark.parametrize(("ratio", "severity"), [(6.0, "info"), (12.0, "warning")])
def test_gradients_that_have_outgrown_adams_second_moment(ratio: float, severity: str) -> None:
    sim = simulation()
    play(sim, 50, tables=adam(1.0, 0.9))
    play(sim, 5, tables=adam(1.0, ratio))
    finding = only(sim, "adam_second_moment")
    assert (finding.severity, finding.layer, finding.first_step, finding.step) == (severity, "block.weight", 51, 53)
    play(sim, 20, tables=adam(1.0, 1.0))
    assert finding.state == "closed"


def test_a_single_large_gradient_is_none() -> None:
    sim = simulation()
    for _ in range(20):
        play(sim, 9, tables=adam(1.0, 1.0))
        play(sim, 1, tables=adam(9.0, 1.0))
    assert sim.of("adam_second_moment") == []
