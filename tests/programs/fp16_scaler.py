"""Mixed precision with GradScaler; three steps overflow on purpose, so that their update is skipped and the scale halves.

With --fused the optimizer itself receives scaled gradients and unscales them in its kernel: its step is then called even
when the update is skipped.
"""

import sys

import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)

STEPS, OVERFLOWS = 20, (4, 5, 11)
fused = "--fused" in sys.argv
model = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 3))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
inputs, targets = torch.randn(STEPS, 16, 10), torch.randint(3, (STEPS, 16))
weights = [p.detach().clone() for p in model.parameters()]
applied = 0

for step in range(STEPS):
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = nn.functional.cross_entropy(model(inputs[step]), targets[step])
    scale = scaler.get_scale()
    scaler.scale(loss).backward()
    if step in OVERFLOWS:
        model[0].weight.grad[0, 0] = float("inf")
    norm = sum(p.grad.double().square().sum().item() for p in model.parameters()) ** 0.5 / scale
    scaler.step(optimizer)
    scaler.update()
    after = [p.detach().clone() for p in model.parameters()]
    applied += any(not torch.equal(a, b) for a, b in zip(weights, after, strict=True))
    weights = after

print(
    f"final loss={loss.item()!r} steps={STEPS} applied={applied} skipped={STEPS - applied} loss_scale={scale!r} "
    f"backoffs={len(OVERFLOWS)} grad_norm={norm!r}"
)
