"""Update ratios and weight norms against the weights themselves, copied by the test."""

import math

import pytest
import torch
from gpuwatch_hooks.probes import updates
from torch import nn

from tests.hooks.recording import recording


def trained(model, optimizer, steps=3, **options):
    """Record some steps; returns the session and [(weights before, weights after)] in float64."""
    pairs = []
    with recording(**options) as session:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().mean().backward()
            before = [p.detach().double().clone() for p in model.parameters()]
            optimizer.step()
            pairs.append((before, [p.detach().double().clone() for p in model.parameters()]))
    return session, pairs


def l2(tensors):
    return math.sqrt(sum(t.square().sum().item() for t in tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ratio_and_norms(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 1)).to(dtype)

    def forward(inputs):
        return nn.Sequential.forward(model, inputs.to(dtype))

    model.forward = forward
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    session, pairs = trained(model, optimizer)
    for step, (before, after) in enumerate(pairs, 1):
        changes = [b - a for a, b in zip(before, after, strict=True)]
        values = session.parts()[step - 1].values
        assert values["weight_norm"] == pytest.approx(l2(before), rel=1e-6)
        tolerance = 1e-5 if dtype is not torch.bfloat16 else 1e-2  # a difference of two bf16 numbers is rounded once
        assert values["update_ratio"] == pytest.approx(l2(changes) / l2(before), rel=tolerance)
        weight_rows, update_rows = session.rows("weight", step=step)[0], session.rows("update", step=step)[0]
        for name, weight, change in zip(weight_rows, before, changes, strict=True):
            assert weight_rows[name]["norm"] == pytest.approx(l2([weight]), rel=1e-6)
            assert update_rows[name]["norm"] == pytest.approx(l2([change]), rel=tolerance, abs=1e-12)
        assert sum(session.histograms("weight", step=step)[0]["0.weight"]) == 240


def test_large_models_are_followed_in_part(monkeypatch):
    """Every k-th entry: the copy is bounded, the ratio an estimate that is good to some per cent."""
    monkeypatch.setattr(updates, "COPIED_ENTRIES", 5000)
    monkeypatch.setattr(updates, "WHOLE_ENTRIES", 100)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    session, pairs = trained(model, optimizer)
    for part, (before, after) in zip(session.parts(), pairs, strict=True):
        truth = l2([b - a for a, b in zip(before, after, strict=True)]) / l2(before)
        assert part.values["update_ratio"] == pytest.approx(truth, rel=0.1)
        assert part.values["weight_norm"] == pytest.approx(l2(before), rel=1e-6)  # that one is read whole
    entry = next(iter(session.recorder.roster))
    copy = updates.Copy(entry)
    assert sum(t.numel() for t in copy.tensors) < 1.2 * 5000
    assert all(t.numel() == p.numel() for t, p in zip(copy.tensors, model.parameters(), strict=True) if p.numel() <= 100)


def test_a_skipped_step_has_no_update(monkeypatch):
    model = nn.Linear(6, 1)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=8.0)
    with recording() as session:
        for number in range(2):
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(4, 6)).square().mean()).backward()
            if number == 1:
                model.weight.grad[0, 0] = math.inf
            scaler.step(optimizer)
            scaler.update()
    assert ["update_ratio" in part.values for part in session.parts()] == [True, False]


def test_a_fused_skip_changes_nothing():
    """The fused optimizer is called and leaves the weights alone: the ratio is a measured zero."""
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with recording() as session:
        scaler.scale(model(torch.randn(4, 6)).square().mean()).backward()
        model.weight.grad[0, 0] = math.inf
        scaler.step(optimizer)
        scaler.update()
    assert session.parts()[0].values["update_ratio"] == 0.0


def test_weights_that_are_all_zero_have_no_ratio():
    weight = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with recording() as session:
        weight.grad = torch.ones(4)
        optimizer.step()
    assert "update_ratio" not in session.parts()[0].values
    assert session.parts()[0].values["weight_norm"] == 0.0


def test_without_histograms_there_are_none():
    model = nn.Linear(6, 1)
    session, _ = trained(model, torch.optim.SGD(model.parameters(), lr=0.1), histograms=False)
    assert session.histograms() == session.histograms("weight") == []
