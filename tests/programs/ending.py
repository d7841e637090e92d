"""Trains a little, then ends as the argument says: `code` exits with 3, `exception` raises, `wait` sleeps until killed."""

import sys
import time

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

print(f"final loss={loss.item()!r} steps={STEPS}", flush=True)
if sys.argv[1] == "code":
    sys.exit(3)
if sys.argv[1] == "exception":
    raise RuntimeError("the data set has gone")
time.sleep(60)
