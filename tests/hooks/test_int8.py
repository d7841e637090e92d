"""compare_int8 on a real model: its copy is quantised, the model is not, and the error is what the outputs say."""

import copy
import importlib.util

import pytest
import torch
from gpuwatch_hooks import session
from torch import nn

import gpuwatch


def test_speed_and_error_are_measured_and_the_model_is_not_touched(monkeypatch):
    monkeypatch.setattr(session, "_current", None)  # one that no test before this has ended
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 64))
    before, mode = copy.deepcopy(model.state_dict()), model.training
    inputs = torch.randn(32, 256)
    result = gpuwatch.compare_int8(model, inputs, rounds=3)
    assert result.speedup_ratio > 0
    assert 1e-4 < result.error_ratio < 0.1, "eight bits are neither exact nor useless"
    assert model.training == mode
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(type(layer) in {nn.Linear, nn.ReLU, nn.Dropout} for layer in model)
    assert not session.current().outbox.is_idle(), "for gpuwatch advise"
    session.current().outbox.collect()


def test_a_model_elsewhere_is_refused():
    with pytest.raises(ValueError, match="CPU"):
        gpuwatch.compare_int8(nn.Linear(2, 2, device="meta"), torch.zeros(1, 2))


def test_torchao_is_used_where_it_is_installed_and_named_where_it_is_not(monkeypatch):
    monkeypatch.setattr(session, "_current", None)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 64))
    if importlib.util.find_spec("torchao") is None:
        with pytest.raises(ImportError, match="torchao, or one that has int8, is not installed here"):
            gpuwatch.compare_int8(model, torch.randn(32, 256), rounds=3, by="torchao")
    else:
        result = gpuwatch.compare_int8(model, torch.randn(32, 256), rounds=3, by="torchao")
        assert result.speedup_ratio > 0
        assert 1e-4 < result.error_ratio < 0.1
        assert all(type(layer.weight) is nn.Parameter for layer in model if isinstance(layer, nn.Linear))
    with pytest.raises(ValueError, match="by is"):
        gpuwatch.compare_int8(model, torch.randn(32, 256), by="tensorrt")
