"""An ordinary optimizer that is given a closure, as several frameworks do."""

import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)

STEPS = 18
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
norm = 0.0


def closure():
    global norm
    inputs = torch.randn(16, 4)
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(inputs), inputs.prod(1, keepdim=True))
    loss.backward()
    norm = sum(p.grad.double().square().sum().item() for p in model.parameters()) ** 0.5
    return loss


for _ in range(STEPS):
    loss = optimizer.step(closure)

print(f"final loss={loss.item()!r} steps={STEPS} closure_calls=1 grad_norm={norm!r}")
