"""compare_amp: what runs in which precision, that the table is right, and that everything is as before."""

import copy
import math
from typing import NamedTuple

import pytest
import torch
from gpuwatch_hooks.amp.switch import Switch, in_float32
from torch import nn

import gpuwatch


class Pair(NamedTuple):
    x: object
    y: object


def training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    seen = []
    model[0].register_forward_hook(lambda _module, _args, output: seen.append(output.dtype))

    def step():
        inputs = torch.randn(32, 64)
        output = model(inputs)
        loss = (output - inputs.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return output.dtype, loss.item()

    return model, optimizer, step, seen


def state(model, optimizer):
    return copy.deepcopy((list(model.state_dict().values()), optimizer.state_dict()["state"], torch.get_rng_state()))


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return len(left) == len(right) and all(map(same, left, right))


def test_both_precisions_run_and_everything_is_as_before():
    model, optimizer, step, seen = training()
    step()
    before = state(model, optimizer)
    seen.clear()
    result = gpuwatch.compare_amp(step, model, optimizer, rounds=3, block_steps=2)
    assert {torch.float32, torch.bfloat16} == set(seen)
    assert seen.count(torch.bfloat16) == 3 * (2 + 2)
    assert same(state(model, optimizer), before)
    assert [line.variant for line in result.lines] == ["float32", "bfloat16"]
    base, half = result.lines
    assert half.speedup_low <= half.speedup_ratio <= half.speedup_high
    assert base.steps_per_second > 0
    assert math.isnan(half.peak_bytes), "a CPU has no allocator to ask"
    assert result.markdown().count("\n") == 4
    after = step()
    model, optimizer, step, _ = training()
    step()
    assert step() == after, "and so is the next step, to the bit"


def test_outputs_come_back_in_float32_and_hooks_leave():
    model, optimizer, step, _ = training()
    dtypes = []
    gpuwatch.compare_amp(lambda: dtypes.append(step()[0]), model, optimizer, rounds=2, block_steps=1)
    assert set(dtypes) == {torch.float32}
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_an_exception_of_the_step_passes_and_leaves_nothing_changed():
    model, optimizer, step, _ = training()
    step()
    before, calls = state(model, optimizer), []

    def failing():
        step()
        calls.append(1)
        if len(calls) == 5:
            raise KeyError("the user's own")

    with pytest.raises(KeyError):
        gpuwatch.compare_amp(failing, model, optimizer, rounds=2, block_steps=2)
    assert same(state(model, optimizer), before)
    assert not model._forward_hooks


def test_an_exception_inside_the_forward_closes_the_region():
    model = nn.Linear(4, 4)
    switch = Switch([model], "cpu")
    switch.set("bfloat16")
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 3))
    assert not torch.is_autocast_enabled("cpu")
    switch.remove()


def test_what_cannot_be_compared_is_refused():
    _, optimizer, step, _ = training()
    with pytest.raises(ValueError, match="never called"):
        gpuwatch.compare_amp(step, nn.Linear(2, 2), optimizer, rounds=2, block_steps=1)
    with pytest.raises(ValueError, match="float16 or torch"):
        gpuwatch.compare_amp(step, nn.Linear(2, 2), optimizer, dtype=torch.float64)


def test_float32_reaches_every_tensor_of_an_output():
    half = torch.ones(1, dtype=torch.bfloat16)
    found = in_float32(Pair({"a": half, "b": [half, 3]}, (half, torch.ones(1, dtype=torch.int64), None)))
    assert isinstance(found, Pair)
    assert found.x["a"].dtype == found.x["b"][0].dtype == found.y[0].dtype == torch.float32
    assert found.y[1].dtype == torch.int64
