"""A run read back from its journal is what was recorded: every step, every logged scalar, layers evenly sampled."""

import math
import random

import pytest
from gpuwatch_hooks import wire

from gpuwatch.history import past
from gpuwatch.history.layers import LayerSamples
from gpuwatch.state.records import Meta, Names, Scalar, TensorRows
from gpuwatch.state.store import State
from tests.state.recorded import hello, identity, slots, step_payload, tensors_payload


@pytest.fixture
def recorded(tmp_path):
    """A run of 1,000 steps with layers at every second one; (its directory, the losses, the norms by step)."""
    noise = random.Random(3)
    state = State(str(tmp_path / "runs"))
    run = state.open_run(hello(), identity())
    losses = {step: noise.choice([noise.random(), math.nan]) for step in range(1, 1001)}
    norms = {step: [noise.random(), noise.random() * 1e-30] for step in range(2, 1001, 2)}
    payloads = []
    for step, loss in losses.items():
        if step in norms:
            payloads.append((wire.KIND_TENSORS, tensors_payload(step, norms[step])))
        payloads.append((wire.KIND_STEP, step_payload(step, {"loss": loss, "step_seconds": 0.5}, groups=(step / 1e4, 0.0))))
    state.ring(run, slots(payloads))
    state.control(run, 1, Names("tensor", 1, 0, ("a.weight", "b.weight"), (3, 4)))
    state.control(run, 2, Meta({"precision": "bf16"}))
    state.control(run, 3, (Scalar("Accuracy/val", 7, 0.5, 1), Scalar("Accuracy/val", 9, math.inf, 2)))
    state.close()
    return tmp_path / "runs" / "digits", losses, norms


def test_every_step_is_read_back_bit_for_bit(recorded):
    directory, losses, _ = recorded
    found = past.read(directory)
    steps, values = found.series("loss")
    assert list(steps) == list(losses) == list(found.steps)
    assert all(got == sent or (math.isnan(got) and math.isnan(sent)) for got, sent in zip(values, losses.values(), strict=True))
    assert list(found.learning_rates) == [step / 1e4 for step in losses]
    assert list(found.values("grad_norm")) == []
    assert found.lost_bytes == 0


def test_names_facts_and_scalars_are_read_back(recorded):
    found = past.read(recorded[0])
    assert [found.tensor_name(index) for index in (0, 1, 2)] == ["a.weight", "b.weight", "tensor2"]
    assert found.facts == {"precision": "bf16"}
    assert [(scalar.step, scalar.value) for scalar in found.scalars["Accuracy/val"]] == [(7, 0.5), (9, math.inf)]


def test_layers_are_sampled_evenly_and_the_last_is_kept(recorded):
    directory, _, norms = recorded
    layers = past.read(directory).layers["gradient"]
    assert layers.steps == list(range(2, 1001, 8)), "500 steps with tables, at most 128 kept: every fourth"
    series = layers.over_time("norm")
    for index in (0, 1):
        assert list(series[index]) == pytest.approx([norms[step][index] for step in layers.steps], rel=1e-6, abs=0)
    assert layers.last()[1]["norm"] == pytest.approx(norms[1000][1], rel=1e-6, abs=0)


def test_a_damaged_stretch_is_passed_over_and_counted(recorded):
    directory, losses, _ = recorded
    segment = min((directory / "journal").iterdir())
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 0xFF
    segment.write_bytes(data)
    (segment.parent / "000099.journal").write_bytes(b"")  # a later segment says that this one is complete
    found = past.read(directory)
    assert found.lost_bytes > 0
    steps, _ = found.series("loss")
    assert 0 < len(steps) < len(losses)
    assert list(steps) == sorted(set(steps))


def test_a_run_without_a_journal_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="journal"):
        past.read(tmp_path)


@pytest.mark.parametrize("steps", [0, 1, 127, 128, 129, 10_000])
def test_samples_stay_bounded_and_evenly_spaced_whatever_the_length(steps):
    samples = LayerSamples(128)
    for step in range(steps):
        samples.add(TensorRows(step, 0, "gradient", 1, 0, 1, 1, b"\0" * 32, 0))
    gaps = {b - a for a, b in zip(samples.steps, samples.steps[1:], strict=False)}
    assert len(samples.steps) <= 128
    assert len(samples.steps) >= min(steps, 64)
    assert len(gaps) <= 1
    assert bool(samples.last()) == bool(steps)
