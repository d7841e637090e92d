"""Dropped steps take no update: what the optimizer costs is counted in both precisions all the same."""

import time

import pytest
import torch
from gpuwatch_hooks.amp import live
from gpuwatch_hooks.amp.plan import Plan
from torch import nn

from tests.hooks.recording import recording

REQUEST = {"first_step": 5, "rounds": 3, "block_steps": 3, "seed": 5, "ticket": 7}
FORWARD, HALF_FORWARD, UPDATE = 0.02, 0.01, 0.04


class Slow(torch.optim.SGD):
    """An optimizer whose update takes longer than the whole half-precision forward pass; without gradients, no time.

    Its step calls another that torch hooks too, once a plain SGD has been made in this process.
    """

    def step(self, closure=None):
        loss = closure() if closure is not None else None
        if any(parameter.grad is not None for group in self.param_groups for parameter in group["params"]):
            time.sleep(UPDATE)
        super().step()
        return loss


Slow.__module__ = "torch.optim.slow"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 1)

    def forward(self, x):
        time.sleep(HALF_FORWARD if torch.is_autocast_enabled("cpu") else FORWARD)
        return self.inner(x)


@pytest.mark.parametrize("has_closure", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_update_is_in_both_times(has_closure, autocast):
    model = Net()
    torch.optim.SGD(model.parameters(), 0.01)
    optimizer = Slow(model.parameters(), 0.01)

    def computed():
        optimizer.zero_grad()
        with torch.autocast("cpu", enabled=autocast):
            loss = model(torch.ones(2, 4)).float().square().mean()
        loss.backward()
        return loss

    with recording() as session:
        session.media = lambda *_: True
        live.begin(session.recorder, {**REQUEST, "drop": True})
        for _ in range(45):
            if has_closure:
                optimizer.step(computed)
            else:
                computed()
                optimizer.step()
    facts = {name: value for told in session.told for name, value in told.items()}
    assert facts["amp_probe_failed"] == ""
    assert facts["amp_probe_dropped_batches"] == 3 * (3 + 2)
    expected = (FORWARD + UPDATE) / (HALF_FORWARD + UPDATE)
    # 1.2; were the update left out of the dropped steps only, 6.0 and 0.33; of all, 2.0.
    assert 0.85 * expected < facts["amp_speedup_ratio"] < 1.25 * expected


def test_an_update_is_added_to_every_block():
    plan = Plan(["float32", "bfloat16"], rounds=2, block_steps=1, seed=0)
    for step in range(plan.steps):
        variant = plan.variant_of(step)
        plan.add(step, 3.0 if variant == 0 else 1.0, 0.0, 1.0 if variant == 0 else 0.0)
    assert plan.seconds(0) == [4.0, 4.0]
    assert plan.seconds(1) == [2.0, 2.0]
    assert plan.speedup(1)[0] == pytest.approx(2.0)
