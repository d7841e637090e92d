"""Three parameter groups with their own learning rates, weight decay on one of them, and a scheduler that lowers all."""

import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)

STEPS = 16
model = nn.ModuleDict({"stem": nn.Linear(6, 12), "norm": nn.LayerNorm(12), "head": nn.Linear(12, 3)})
optimizer = torch.optim.AdamW(
    [
        {"params": model["stem"].parameters(), "lr": 1e-3},
        {"params": model["norm"].parameters(), "lr": 2e-3, "weight_decay": 0.0},
        {"params": model["head"].parameters(), "lr": 1e-2, "weight_decay": 0.1},
    ],
    weight_decay=0.0,
)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

for _ in range(STEPS):
    inputs, targets = torch.randn(32, 6), torch.randint(3, (32,))
    loss = nn.functional.cross_entropy(model["head"](torch.relu(model["norm"](model["stem"](inputs)))), targets)
    optimizer.zero_grad()
    loss.backward()
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.step()
    scheduler.step()

print(f"final loss={loss.item()!r} steps={STEPS} lr0={rates[0]!r} lr1={rates[1]!r} lr2={rates[2]!r} decay2=0.1")
