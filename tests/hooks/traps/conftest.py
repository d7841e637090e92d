"""Small models and the truth beside them, in float64."""

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))


@pytest.fixture
def batches():
    """Twenty batches of (inputs, targets)."""
    inputs = torch.randn(20, 16, 6)
    return [(x, 3 * x.sum(1, keepdim=True)) for x in inputs]
