"""The gradient's norm over the root of the sum of Adam's second moment, against a slow float64 twin."""

import math

import pytest
import torch
from torch import nn

from tests.hooks.recording import recording


def twin(parameter, state, group):
    """What it must be, from the state before the step."""
    correction = 1.0 - group["betas"][1] ** float(state["step"])
    squares = sum(g * g for g in parameter.grad.double().flatten().tolist())
    return math.sqrt(squares / (sum(state["exp_avg_sq"].double().flatten().tolist()) / correction))


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam])
def test_it_is_what_the_twin_says(make):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    optimizer = make(model.parameters(), lr=1e-3)
    expected = []
    with recording() as session:
        for step in range(1, 31):
            optimizer.zero_grad()
            (model(torch.randn(8, 6)).square().mean() * (20.0 if step == 30 else 1.0)).backward()
            group = optimizer.param_groups[0]
            if step > 21:
                matrices = {name: p for name, p in model.named_parameters() if p.dim() == 2}
                expected.append({name: twin(p, optimizer.state[p], group) for name, p in matrices.items()})
            optimizer.step()
    found = [
        {name: row["norm"] for name, row in table.items() if row["norm"] == row["norm"]}
        for table in session.rows("second_moment")
    ]
    assert len(found) == 10
    for table, wanted in zip(found[1:], expected, strict=True):
        assert table == pytest.approx(wanted, rel=1e-5)
    assert found[-1]["0.weight"] > 5.0
    assert found[0]["0.weight"] < 3.0


def test_the_loss_scale_is_taken_out():
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with recording() as session:
        for _ in range(30):
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(8, 4)).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
    found = [table["weight"]["norm"] for table in session.rows("second_moment")]
    assert len(found) == 10
    assert all(0.1 < value < 5.0 for value in found)


def test_many_tensors_take_turns_and_others_are_left_out():
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 3) for _ in range(40)])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with recording() as session:
        for _ in range(26):
            optimizer.zero_grad()
            sum(layer(torch.randn(2, 3)).square().mean() for layer in model).backward()
            optimizer.step()
    tables = [{name for name, row in table.items() if row["norm"] == row["norm"]} for table in session.rows("second_moment")]
    assert [len(table) for table in tables] == [16] * 6
    assert len(set().union(*tables)) == 40
    assert not any("bias" in name for table in tables for name in table)


def test_optimizers_without_a_second_moment_have_none():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recording() as session:
        for _ in range(25):
            model(torch.randn(2, 2)).square().mean().backward()
            optimizer.step()
    assert session.rows("second_moment") == []
