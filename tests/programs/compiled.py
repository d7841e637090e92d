"""A model under torch.compile: names carry `_orig_mod.` and hooks must not break the graph."""

import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)

STEPS = 12
model = torch.compile(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 1)), backend="eager")
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

for _ in range(STEPS):
    inputs = torch.randn(16, 6)
    loss = nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True))
    optimizer.zero_grad()
    loss.backward()
    norm = sum(p.grad.double().square().sum().item() for p in model.parameters()) ** 0.5
    optimizer.step()

breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
print(f"final loss={loss.item()!r} steps={STEPS} grad_norm={norm!r} graph_breaks={breaks}")
