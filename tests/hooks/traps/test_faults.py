"""Trap 42: a probe that fails is switched off by itself, and neither training nor the other probes notice.

A fault in any single call is test_faults.py's, one folder up.
"""

import pytest
import torch
from torch import nn

from tests.hooks.recording import recording


def train(steps=2):
    """Every patched function is called: autocast, scaler, clipping, DataLoader, two optimizers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
    optimizer, other = torch.optim.SGD(model[0].parameters(), lr=1e-2), torch.optim.Adam(model[2].parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    loader = iter(torch.utils.data.DataLoader(torch.randn(steps * 4, 6), batch_size=4))
    losses = []
    for step in range(steps):
        inputs = next(loader)
        optimizer.zero_grad()
        other.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True))
        scaler.scale(loss).backward()
        if step == 1:
            model[0].weight.grad[0, 0] = float("nan")
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model[0].parameters(), 0.5)
        scaler.step(optimizer)
        scaler.step(other)
        scaler.update()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "name", ["gradients", "loss", "loss_scale", "groups", "memory", "modes", "autocast", "weights", "updates"]
)
def test_a_probe_that_always_fails_takes_nothing_else_with_it(name):
    plain = train(6)
    with recording(strict=False) as session:
        probe = session.recorder.by_name[name]

        def fail(*_):
            raise ValueError(name)

        for method in ("before", "after"):
            if hasattr(probe, method):
                setattr(probe, method, fail)
        recorder = session.recorder  # it looks the methods up once
        recorder._all_before, recorder._all_after = recorder._calls("before"), recorder._calls("after")
        losses = train(6)
    assert losses == plain
    assert len(session.parts()) == 12
    assert session.guard.is_off(name)
    assert len(session.faults) == 3
    if name != "gradients":
        assert "grad_norm" in session.parts()[-1].values
