"""Four micro-batches to an optimizer step; with --divide each micro-loss is divided by four, as it should be."""

import sys

import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)

MICRO, STEPS = 4, 12
divisor = MICRO if "--divide" in sys.argv else 1
model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

for _ in range(STEPS):
    optimizer.zero_grad()
    backward_losses = []
    for _ in range(MICRO):
        inputs = torch.randn(8, 6)
        loss = nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True)) / divisor
        loss.backward()
        backward_losses.append(loss.item())
    norm = sum(p.grad.double().square().sum().item() for p in model.parameters()) ** 0.5
    optimizer.step()

mean = sum(backward_losses) * divisor / MICRO  # what the step has minimised, however the loop writes it
print(f"final loss={mean!r} steps={STEPS} micro_batches={MICRO} grad_norm={norm!r}")
