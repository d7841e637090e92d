"""Trap 6: both norms, before and after clipping, however the loop clips."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from tests.hooks.recording import recording
from tests.hooks.traps.truth import CLOSE, norm


def _by_norm(parameters):
    clip_grad_norm_(parameters, 0.5)


def _by_infinity(parameters):
    clip_grad_norm_(parameters, 0.5, norm_type=math.inf)


def _by_value(parameters):
    clip_grad_value_(parameters, 0.01)


def _by_value_from_the_module(parameters):
    nn.utils.clip_grad_value_(parameters, 0.01, foreach=False)


def _by_hand(parameters):
    total = nn.utils.get_total_norm([p.grad for p in parameters])
    for parameter in parameters:
        parameter.grad.mul_(0.5 / total)


def _twice(parameters):
    clip_grad_norm_(parameters, 2.0)
    clip_grad_norm_(parameters, 0.5)


def _each_layer(parameters):
    for parameter in parameters:
        clip_grad_norm_([parameter], 0.1)


def _then_changed(parameters):
    clip_grad_norm_(parameters, 0.5)
    parameters[0].grad.add_(0.01)


def _one_tensor(parameters):
    clip_grad_norm_(parameters[0], 0.1)


WAYS = [_by_norm, _by_infinity, _by_value, _by_value_from_the_module, _by_hand, _twice, _each_layer, _then_changed, _one_tensor]


@pytest.mark.parametrize("clip", WAYS, ids=lambda way: way.__name__.strip("_"))
def test_norms_before_and_after(model, batches, clip):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    parameters, before, after, largest = list(model.parameters()), [], [], []
    with recording() as session:
        for inputs, targets in batches[:5]:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            before.append(norm(parameters))
            largest.append(max(p.grad.abs().max().item() for p in parameters))
            clip(parameters)
            after.append(norm(parameters))
            optimizer.step()
    parts = session.parts()
    assert [part.values["grad_norm"] for part in parts] == pytest.approx(before, rel=CLOSE)
    assert [part.values["grad_norm_clipped"] for part in parts] == pytest.approx(after, rel=CLOSE)
    assert [part.values["grad_absmax"] for part in parts] == pytest.approx(largest)  # of the rows too: before
    assert {"clip_max_norm" in part.values for part in parts} == {
        clip in (_by_norm, _by_infinity, _twice, _each_layer, _then_changed, _one_tensor)
    }
    assert {part.values.get("clipped_while_scaled", 0.0) for part in parts} == {0.0}


def test_an_iterator_is_left_to_the_user(model, batches):
    """get_total_norm takes any iterable: reading a generator first would leave torch nothing to read."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with recording() as session:
        for inputs, targets in batches[:3]:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            true_norm = norm(model.parameters())
            total = nn.utils.get_total_norm(p.grad for p in model.parameters())
            assert total.item() == pytest.approx(true_norm, rel=CLOSE)
            nn.utils.clip_grads_with_norm_((p for p in model.parameters()), 0.5, total)
            optimizer.step()
    assert session.parts()[-1].values["grad_norm"] == pytest.approx(0.5, rel=1e-5)  # nobody could look before


def test_a_limit_that_is_not_reached(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with recording() as session:
        for inputs, targets in batches[:3]:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            clip_grad_norm_(model.parameters(), 1e6)
            optimizer.step()
    for part in session.parts():
        assert part.values["clip_max_norm"] == 1e6
        assert part.values["grad_norm_clipped"] == part.values["grad_norm"]


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_clipping_what_is_not_finite(model, batches, bad):
    """torch then multiplies by 0 or NaN: what stays finite is 0, and the layer that was bad before clipping is still named."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with recording() as session:
        for step, (inputs, targets) in enumerate(batches[:3]):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            if step == 1:
                model[2].bias.grad[0] = bad
                true_norm = norm(model.parameters())
            clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    part = session.parts()[1]
    assert part.values["grad_norm"] == pytest.approx(true_norm, rel=CLOSE)
    assert part.values["grad_nonfinite_count"] == 1
    assert part.values["grad_norm_clipped"] == pytest.approx(0.0, abs=1e-9)
    rows = session.rows("gradient", step=2)[0]
    assert [name for name, row in rows.items() if row["nonfinite_count"]] == ["2.bias"]


def test_two_optimizers_clipped_together(batches):
    first, second = nn.Linear(6, 1), nn.Linear(6, 1)
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-3) for m in (first, second)]
    before, after = [], []
    with recording() as session:
        for inputs, targets in batches[:3]:
            for optimizer in optimizers:
                optimizer.zero_grad()
            nn.functional.mse_loss(first(inputs) + second(inputs), targets).backward()
            before += [norm(first.parameters()), norm(second.parameters())]
            clip_grad_norm_([*first.parameters(), *second.parameters()], 0.3)
            after += [norm(first.parameters()), norm(second.parameters())]
            for optimizer in optimizers:
                optimizer.step()
    parts = session.parts()
    assert [part.values["grad_norm"] for part in parts] == pytest.approx(before, rel=CLOSE)
    assert [part.values["grad_norm_clipped"] for part in parts] == pytest.approx(after, rel=CLOSE)


def test_clipping_what_accelerate_has_wrapped(model, batches):
    """Its wrapper is an Optimizer too, of the same tensors, and never steps itself: one optimizer, each tensor once."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    with recording() as session:
        for inputs, targets in batches[:3]:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.mse_loss(model(inputs), targets))
            accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    assert session.tables["tensor"][1] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert session.tables["group"][1] == ["group0"]
    assert session.tables["optimizer"][1] == ["AdamW"]
    assert all(part.values["grad_norm"] > part.values["grad_norm_clipped"] for part in session.parts())


def test_clipping_costs_no_second_read(model, batches, monkeypatch):
    """The norm after clipping follows from torch's own coefficient, as long as nothing else touched the gradients."""
    from gpuwatch_hooks.kernels import cpu

    calls, original = [], cpu.norms
    monkeypatch.setattr(cpu, "norms", lambda tensors, sizes=None: calls.append(len(tensors)) or original(tensors, sizes))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with recording(every=1000, histograms=False) as session:
        for inputs, targets in batches[:6]:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            clip_grad_norm_(model.parameters(), 0.5)
            calls.clear()
            optimizer.step()
    assert calls == []
    assert session.parts()[-1].values["grad_norm_clipped"] == pytest.approx(0.5, rel=1e-5)
