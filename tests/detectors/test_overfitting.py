"""Validation against training: overfitting is found once, and noise, plateaus and other scalars are none."""

from __future__ import annotations

import math
import random

import pytest

from tests.detectors.test_step_rules import only, simulation


def train_and_validate(validation, *, tag: str = "Loss/val", epochs: int = 12, training=lambda epoch: math.exp(-epoch / 4)):
    """20 steps an epoch; `validation(epoch)` is logged after each."""
    sim, rng = simulation(), random.Random(2)
    for epoch in range(1, epochs + 1):
        for _ in range(20):
            sim.advance({"loss": training(epoch) * math.exp(rng.gauss(0.0, 0.05))})
        sim.log(tag, validation(epoch))
    sim.advance({"loss": 0.01})
    return sim


@pytest.mark.parametrize(
    ("tag", "values"),
    [
        ("Loss/val", lambda epoch: 1.0 + 0.1 * abs(epoch - 4)),
        ("val_loss", lambda epoch: 1.0 + 0.1 * abs(epoch - 4)),
        ("validLoss", lambda epoch: 1.0 + 0.1 * abs(epoch - 4)),
        ("eval/perplexity", lambda epoch: 8.0 + abs(epoch - 4)),
        ("Accuracy/val", lambda epoch: 0.8 - 0.02 * abs(epoch - 4)),
        ("test_acc_percent", lambda epoch: 80.0 - 3 * abs(epoch - 4)),
    ],
)
def test_a_validation_that_gets_worse_while_training_gets_better(tag: str, values) -> None:
    finding = only(train_and_validate(values, tag=tag), "overfitting")
    assert finding.severity == "warning"
    assert 60 <= finding.first_step <= 100, "the best evaluation was after epoch 4, at step 80"
    assert finding.step <= 12 * 20 + 1


def test_a_validation_that_wavers_while_it_gets_worse_is_one_finding() -> None:
    wavering = train_and_validate(lambda epoch: 1.0 + 0.05 * abs(epoch - 4) + 0.2 * (epoch > 4) * (epoch % 3), epochs=40)
    assert only(wavering, "overfitting").state == "active"
    comes_back = train_and_validate(lambda epoch: 1.0 + 0.1 * abs(epoch - 4) if epoch < 20 else 1.0, epochs=40)
    assert only(comes_back, "overfitting").state == "closed"


@pytest.mark.parametrize(
    ("validation", "training"),
    [
        (lambda epoch: 1.0 / epoch, lambda epoch: 1.0 / epoch),
        (lambda epoch: 1.0 + 0.3 * (epoch % 2), lambda epoch: math.exp(-epoch / 4)),
        (lambda epoch: 1.0 + 0.1 * abs(epoch - 4), lambda _: 1.0),
        (lambda epoch: 1.0 + 0.01 * abs(epoch - 4), lambda epoch: math.exp(-epoch / 4)),
        (lambda epoch: math.nan if epoch == 6 else 1.0, lambda epoch: math.exp(-epoch / 4)),
    ],
    ids=["both fall", "up and down", "training does not improve", "hardly", "a NaN"],
)
def test_validations_that_are_fine(validation, training) -> None:
    assert train_and_validate(validation, training=training).of("overfitting") == []


def test_training_scalars_and_strange_tags_are_no_validation() -> None:
    for tag in ("Loss/train", "interval_loss", "latest_error", "devices/loss", "val_time"):
        assert train_and_validate(lambda epoch: 1.0 + epoch, tag=tag).of("overfitting") == [], tag
