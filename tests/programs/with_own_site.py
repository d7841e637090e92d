"""Trains in an environment that has its own sitecustomize, and says how often that ran."""

import sys

import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)

STEPS = 8
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

for _ in range(STEPS):
    inputs = torch.randn(16, 4)
    loss = nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

runs = getattr(sys, "own_site_runs", 0)
print(f"final loss={loss.item()!r} steps={STEPS} own_site_runs={runs}")
