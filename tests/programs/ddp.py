"""DistributedDataParallel over gloo, started by torchrun: every rank has other data and, after all-reduce, one gradient."""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
torch.manual_seed(0)
dist.init_process_group("gloo")
rank = dist.get_rank()

STEPS = 12
model = DistributedDataParallel(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 1)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
torch.manual_seed(100 + rank)

for _ in range(STEPS):
    inputs = torch.randn(16, 6)
    loss = nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True))
    optimizer.zero_grad()
    loss.backward()
    norm = sum(p.grad.double().square().sum().item() for p in model.parameters()) ** 0.5
    optimizer.step()

# One write each, or the ranks' lines may be cut into one another.
os.write(1, f"final loss={loss.item()!r} rank={rank} steps={STEPS} grad_norm={norm!r}\n".encode())
dist.destroy_process_group()
