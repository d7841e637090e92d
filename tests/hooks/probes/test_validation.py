"""Validation passes over a DataLoader are told with the mode of the model; training batches are none."""

import pytest
import torch
from gpuwatch_hooks.keepsake import Keepsake
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.hooks.recording import recording

DATA = TensorDataset(torch.randn(12, 3), torch.randn(12, 1))


def run(epochs, validate, *, off=torch.no_grad):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with recording() as session:
        for _ in range(epochs):
            model.train()
            for inputs, targets in DataLoader(DATA, batch_size=4):
                optimizer.zero_grad()
                (model(inputs) - targets).square().mean().backward()
                optimizer.step()
            if validate:
                model.train(validate == "train")
                with off():
                    for inputs, _ in DataLoader(DATA, batch_size=6):
                        model(inputs)
    return [(event.step, event.value) for event in session.events("validation_pass")]


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(("mode", "value"), [("train", 1.0), ("eval", 0.0)])
def test_a_pass_is_told_when_training_goes_on(off, mode, value):
    assert run(4, mode, off=off) == [(3, value), (6, value), (9, value)]


def test_training_batches_are_no_validation():
    assert run(4, "") == []


def test_the_same_again_is_not_told_for_ever():
    assert len(run(12, "train")) == 4


def by_hand(mode, norm, *, every=4, steps=16):
    """A validation without a DataLoader; BatchNorm's own statistics give the train mode away."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), norm(4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with recording() as session:
        for step in range(1, steps + 1):
            model.train()
            optimizer.zero_grad()
            model(torch.randn(4, 3)).square().mean().backward()
            optimizer.step()
            if step % every == 0:
                model.train(mode == "train")
                with torch.no_grad():
                    for batch in torch.randn(3, 4, 3):
                        model(batch)
    return [(event.step, event.value) for event in session.events("validation_pass")]


def test_a_batch_norm_that_learns_without_gradients_is_told():
    assert by_hand("train", nn.BatchNorm1d) == [(4, 1.0), (8, 1.0), (12, 1.0)]


def test_its_twins_are_not():
    assert by_hand("eval", nn.BatchNorm1d) == []
    assert by_hand("train", nn.LayerNorm) == []


def test_a_batch_norm_that_is_put_back_by_us_has_learned_nothing():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with recording() as session:
        for step in range(16):
            if step % 4 == 0:
                kept = Keepsake([model], [optimizer])
            optimizer.zero_grad()
            model(torch.randn(4, 3)).square().mean().backward()
            optimizer.step()
            if step % 4 == 0:
                kept.restore()
                assert kept.renew()
    assert list(session.events("validation_pass")) == []


def test_what_happens_at_every_step_belongs_to_training():
    """A generator in train mode makes the discriminator's samples without gradients; told once, at the first."""
    assert by_hand("train", nn.BatchNorm1d, every=1) == [(1, 1.0)]
