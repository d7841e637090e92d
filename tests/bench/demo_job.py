"""The demo's own training loop as a job of `bench_overhead.py`: steps of some 6 ms, which is where fixed costs show."""

import time

import torch
from torch import nn

from gpuwatch.demo.digits import DigitsNet, load


class DemoJob:
    """`gpuwatch demo` without its progress bar and its validation."""

    def __init__(self):
        torch.manual_seed(0)
        self.batches = list(load(64)[0])
        self.model = DigitsNet()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, weight_decay=1e-4)
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.steps = 0

    def seconds(self, count):
        """(wall seconds, processor seconds) of `count` steps."""
        began = time.perf_counter(), time.process_time()
        for _ in range(count):
            images, labels = self.batches[self.steps % len(self.batches)]
            with torch.autocast("cpu", dtype=torch.float16, enabled=False):
                loss = nn.functional.cross_entropy(self.model(images), labels)
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.steps += 1
        return time.perf_counter() - began[0], time.process_time() - began[1]
