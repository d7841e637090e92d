"""A user's training, which knows nothing of range tests: prints "batch loss rate" for each batch, saves its model at the end.

`--skip N` passes over batches 1 to N, as a run whose range test took them and gave everything back. `--epoch N` steps a second
scheduler at the end of every N batches, also of those that are passed over. `--detach N` takes gpuwatch out, on a thread of
its own as the daemon's word does, between the forward and the backward pass of batch N.
"""

import argparse
import atexit
import threading

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("kind")
parser.add_argument("--batches", type=int)
parser.add_argument("--skip", type=int, default=0)
parser.add_argument("--without", type=lambda text: set(map(int, text.split(","))), default=set(), help="batches passed over")
parser.add_argument("--epoch", type=int, help="batches of an epoch; its scheduler alone is stepped")
parser.add_argument("--detach", type=int)
options = parser.parse_args()
atexit.register(lambda: open("model.pt", "w").close())

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
critic = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
second = torch.optim.Adam(critic.parameters(), lr=0.001)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.8)
by_epoch = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
scaler = torch.amp.GradScaler("cpu", enabled=options.kind == "amp", growth_interval=3)
data = torch.Generator().manual_seed(1)
batches = [torch.randn(8, 6, generator=data) for _ in range(options.batches)]


def loss_of(inputs):
    with torch.autocast("cpu", torch.bfloat16, enabled=options.kind == "amp"):
        return (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()


def detach():
    from gpuwatch_hooks import session

    leaving = threading.Thread(target=session.current().detach)
    leaving.start()
    leaving.join()


def end_of_batch(number):
    if options.epoch and (number + 1) % options.epoch == 0:
        by_epoch.step()


try:
    for number, batch in enumerate(batches):
        if 1 <= number <= options.skip or number in options.without:
            end_of_batch(number)
            continue
        if options.kind == "gan":
            second.zero_grad()
            (1 + (critic(batch).mean() + model(batch).mean()).square()).backward()
            second.step()
        optimizer.zero_grad()
        halves = batch.split(4) if options.kind == "accumulating" else [batch]
        total = 0.0
        for half in halves:
            loss = loss_of(half) / len(halves)
            if number == options.detach:
                detach()
            scaler.scale(loss).backward()
            total += loss.item()
        scaler.step(optimizer)
        scaler.update()
        print(number, repr(total), optimizer.param_groups[0]["lr"], scaler.get_scale(), flush=True)
        if not options.epoch:
            scheduler.step()
        end_of_batch(number)
finally:
    open("model.pt", "w").close()
