"""Clipping by norm: no scaler, after unscale_ (--scaler right), or on gradients that are still scaled (--scaler wrong)."""

import sys

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

torch.set_num_threads(1)
torch.manual_seed(0)

STEPS, SCALE = 15, 4096.0
mode = sys.argv[sys.argv.index("--scaler") + 1] if "--scaler" in sys.argv else "none"
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=1000, enabled=mode != "none")


def norm():
    return sum(p.grad.double().square().sum().item() for p in model.parameters()) ** 0.5


for _ in range(STEPS):
    inputs = torch.randn(16, 8)
    loss = nn.functional.mse_loss(model(inputs), 5 * inputs.sum(1, keepdim=True))
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    if mode == "right":
        scaler.unscale_(optimizer)
    scale_left = SCALE if mode == "wrong" else 1.0
    before = norm() / scale_left
    clip_grad_norm_(model.parameters(), max_norm=1.0)
    after = norm() / scale_left
    scaler.step(optimizer)
    scaler.update()

print(
    f"final loss={loss.item()!r} steps={STEPS} grad_norm={before!r} grad_norm_clipped={after!r} clip_max_norm=1.0 "
    f"clipped_while_scaled={int(mode == 'wrong')}"
)
