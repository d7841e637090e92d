"""Run under strace: STEPS steps without hooks, then as many with them, each stretch between two getppid calls."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import gc

import torch
from torch import nn

from tests.hooks.recording import recording

STEPS = int(sys.argv[1])


def train(model, optimizer, inputs, targets):
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)

    def steps(count):
        for _ in range(count):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.mse_loss(model(inputs), targets)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()

    steps(100)
    gc.collect()
    gc.freeze()  # arenas that a collection gives back would be counted as ours, or as the loop's
    os.getppid()
    steps(STEPS)
    os.getppid()


def main():
    model = nn.Sequential(*[nn.Linear(32, 32) for _ in range(20)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    inputs, targets = torch.randn(8, 32), torch.randn(8, 32)
    train(model, optimizer, inputs, targets)
    with recording() as session:
        if "--noisy" in sys.argv:  # what the test must notice: one system call a record
            write = session.write
            session.write = lambda *record: (os.getuid() and None) or write(*record)
        session.ring.slot_count = 512  # as large as a real ring, so that it is written round
        train(model, optimizer, inputs, targets)


if __name__ == "__main__":
    main()
