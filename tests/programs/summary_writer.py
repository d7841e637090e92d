"""Writes its own TensorBoard scalars into the folder named on the command line."""

import sys

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

torch.set_num_threads(1)
torch.manual_seed(0)

STEPS = 10
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
writer = SummaryWriter(sys.argv[1])

for step in range(STEPS):
    inputs = torch.randn(16, 4)
    loss = nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    writer.add_scalar("Loss/own", loss.item(), step)
    writer.add_scalar("Accuracy/val", 1.0 / (1.0 + loss.detach()), step)
writer.close()

print(f"final loss={loss.item()!r} steps={STEPS} accuracy={(1.0 / (1.0 + loss.detach())).item()!r}")
