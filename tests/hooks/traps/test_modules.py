"""Modes, checkpointing, and models that are looked at between steps."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.hooks.recording import recording


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(batches, reentrant):
    """Trap 32: the backward that recomputes a block is no backward of the user's."""
    first, second = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Linear(8, 1)
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=1e-3)
    with recording() as session:
        for inputs, targets in batches[:3]:
            optimizer.zero_grad()
            hidden = checkpoint(first, inputs.requires_grad_(True), use_reentrant=reentrant)
            loss = nn.functional.mse_loss(second(hidden), targets)
            loss.backward()
            optimizer.step()
            part = session.parts()[-1]
            assert part.values["micro_batches"] == 1
            assert part.values["loss"] == loss.item()
    phases = sum(part.values[f"{phase}_seconds"] for phase in ("data", "forward", "backward", "optimizer", "other"))
    assert phases == pytest.approx(part.values["step_seconds"])


def test_training_in_eval_mode(batches):
    """Trap 34: the mode is that of the backward, not of whatever the loop does before it steps."""
    model = nn.Sequential(nn.Linear(6, 12), nn.Dropout(0.5), nn.Linear(12, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with recording() as session:
        for number, (inputs, targets) in enumerate(batches[:6]):
            model.train(number % 2 == 0)
            nn.functional.mse_loss(model(inputs), targets).backward()
            model.train(number % 2 == 1)
            optimizer.step()
    modes = [part.values["training_mode"] for part in session.parts()]
    assert modes[1:] == [0.0, 1.0, 0.0, 1.0, 0.0]  # at the first backward nobody knows the model yet


def test_validation_leaves_no_trace(model, batches):
    """Losses without a backward are not training losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    with recording() as session:
        for inputs, targets in batches[:4]:
            model.eval()
            with torch.no_grad():
                nn.functional.mse_loss(model(inputs * 100), targets)
            model.train()
            loss = nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
    assert [part.values["loss"] for part in session.parts()] == losses


def test_gradients_of_gradients(model, batches):
    """create_graph=True: the gradients have a graph of their own, and nothing of ours is added to it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with recording() as session:
        for inputs, targets in batches[:2]:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), targets)
            gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
            penalty = sum(g.square().sum() for g in gradients)
            (loss + penalty).backward()
            optimizer.step()
    assert [part.values["micro_batches"] for part in session.parts()] == [1, 1]


def test_a_double_backward_root_is_not_walked_for_ever(batches):
    """A very deep graph behind the loss costs no more than a shallow one."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    value = weight
    for _ in range(20_000):
        value = value + 0.0
    with recording() as session:
        value.sum().backward()
        optimizer.step()
    assert session.parts()[0].values["hook_seconds"] < 0.5
