"""A training that knows nothing of gpuwatch, in mixed precision; its learning rate explodes when it is told.

python breaks.py FILE LOGDIR: breaks once FILE exists, writes scalars to LOGDIR, and goes on until it is ended.
"""

import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
writer = SummaryWriter(sys.argv[2])
step = 0
while True:
    if Path(sys.argv[1]).exists():
        optimizer.param_groups[0]["lr"] = 1e30
    inputs = torch.randn(16, 8)
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = (model(inputs) - inputs[:, :1]).square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    step += 1
    writer.add_scalar("Loss/train", loss.item(), step)
    time.sleep(0.02)
