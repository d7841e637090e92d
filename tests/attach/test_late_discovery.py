"""Names found in a job that is under way, whose optimizer has its state already."""

import torch
from gpuwatch_hooks import discovery
from torch import nn


class Unprintable(nn.Parameter):
    def __repr__(self):
        raise AssertionError("a tensor was made into text: on a GPU that waits for the device")


def test_no_tensor_is_made_into_text(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    assert len(optimizer.state) == 4
    monkeypatch.setattr(nn.Parameter, "__repr__", Unprintable.__repr__)
    parameters = list(model.parameters())
    found = discovery.search(parameters)
    assert [found.name(parameter) for parameter in parameters] == ["0.weight", "0.bias", "1.weight", "1.bias"]
