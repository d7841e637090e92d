"""Validation passes over a DataLoader are told with the mode of the model; training batches are none."""

import pytest
import torch
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
