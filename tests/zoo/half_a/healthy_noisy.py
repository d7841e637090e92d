"""Half A, healthy: trainings whose loss or gradients are wild by nature, and that get where they should all the same."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, smooth_l1_loss

from tests.zoo.data import batches, clusters
from tests.zoo.models import mlp
from tests.zoo.program import healthy


@healthy()
def regression_unnormalised():
    """Targets in the thousands: the loss begins at ten millions, and gradients are as large as they must be."""
    model = mlp(10, 64, 1, activation=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    inputs = 50.0 * torch.randn(2048, 10)
    targets = inputs.square().sum(1, keepdim=True) / 10.0 + 10.0 * torch.randn(2048, 1)
    for batch, target in batches(inputs, targets, steps=1500):
        optimizer.zero_grad()
        mse_loss(model(batch), target).backward()
        optimizer.step()


@healthy()
def batch_of_one():
    model = mlp(16, 32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002)
    for inputs, labels in batches(*clusters(2048), size=1, steps=1500):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@healthy()
def learned_by_heart():
    """256 random labels: the loss falls by five orders of magnitude, one hard example jumping up after another."""
    model = mlp(16, 128, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    inputs, labels = clusters(256)
    for batch, some in batches(inputs, labels[torch.randperm(256)], size=16, steps=2000):
        optimizer.zero_grad()
        cross_entropy(model(batch), some).backward()
        optimizer.step()


@healthy()
def edge_of_stability():
    """Full-batch gradient descent at a rate where the loss goes down in a saw-tooth (Cohen 2021)."""
    model = mlp(16, 32, 32, 4, activation=nn.Tanh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    inputs, labels = clusters(128)
    for _ in range(1000):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@healthy()
def heavy_tailed_targets():
    """Targets with outliers under a robust loss: gradient norms with a long tail."""
    model = mlp(8, 32, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    inputs = torch.randn(4096, 8)
    noise = torch.distributions.StudentT(2.0).sample((4096, 1))
    for batch, target in batches(inputs, inputs[:, :1] * inputs[:, 1:2] + 0.3 * noise, size=16, steps=1000):
        optimizer.zero_grad()
        smooth_l1_loss(model(batch), target).backward()
        optimizer.step()


@healthy()
def plain_deep_relu():
    """Fourteen layers without normalisation that do train: gradients are small in front, for a while."""
    model = mlp(16, *[32] * 14, 4)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for inputs, labels in batches(*clusters(), steps=600):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
