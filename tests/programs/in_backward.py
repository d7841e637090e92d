"""One optimizer for each parameter, stepped by a post-accumulate hook while backward still runs: gradients never coexist."""

import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)

STEPS = 14
model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
optimizers = {p: torch.optim.SGD([p], lr=0.02) for p in model.parameters()}
squares = 0.0


def step_now(parameter):
    global squares
    squares += parameter.grad.double().square().sum().item()
    optimizers[parameter].step()
    optimizers[parameter].zero_grad()


for parameter in model.parameters():
    parameter.register_post_accumulate_grad_hook(step_now)

for _ in range(STEPS):
    squares = 0.0
    inputs = torch.randn(16, 6)
    loss = nn.functional.mse_loss(model(inputs), inputs.mean(1, keepdim=True))
    loss.backward()

print(f"final loss={loss.item()!r} steps={STEPS} optimizers={len(optimizers)} grad_norm={squares**0.5!r}")
