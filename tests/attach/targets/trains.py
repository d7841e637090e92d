"""A training loop that knows nothing of gpuwatch: `trains.py [fp32|bf16|fp16] [workers]`. Answers commands on standard input.

look   one JSON line: what an attach could leave behind (modules, threads, descriptors, patched attributes, hooks)
loop   one JSON line: step, longest gap between steps since the last asking, in seconds
go N   takes N more steps and holds; while it holds its main thread comes by bytecode 50 times a second
end N  takes its last step at number N or at once, says a hash of all losses and weights, and ends
"""

import gc
import hashlib
import json
import os
import select
import sys
import threading
import time

import torch
from torch import nn
from torch.optim import optimizer as optimizer_module


def attributes():
    """Every function that torch's modules and their classes hold, by place."""
    found = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] != "torch" or module is None:
            continue
        for name, value in list(vars(module).items()):
            if callable(value):
                found[f"{module_name}.{name}"] = value
            if type(value) is type and value.__module__ == module_name:
                found.update({f"{module_name}.{name}.{key}": item for key, item in vars(value).items() if callable(item)})
    return found


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
        self.head = nn.Linear(32, 4)

    def forward(self, inputs):
        return self.head(self.body(inputs))


class Trainer:
    def __init__(self, precision, workers):
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self.precision = precision
        self.net = Net()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=precision == "fp16")
        data = torch.utils.data.TensorDataset(torch.randn(512, 16), torch.randint(0, 4, (512,)))
        self.loader = torch.utils.data.DataLoader(data, batch_size=16, num_workers=workers)
        self.steps, self.longest, self.last_end = 0, 0.0, time.perf_counter()
        self.digest = hashlib.sha256()
        self.before, self.end_at, self.hold_at = attributes(), None, None

    def run(self):
        while True:
            for inputs, targets in self.loader:
                self.step(inputs, targets)
                if self.answer():
                    return

    def step(self, inputs, targets):
        self.optimizer.zero_grad()
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        with torch.autocast("cpu", dtype=dtype, enabled=self.precision != "fp32"):
            loss = nn.functional.cross_entropy(self.net(inputs).float(), targets)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.digest.update(loss.detach().numpy().tobytes())
        self.steps += 1
        now = time.perf_counter()
        self.longest, self.last_end = max(self.longest, now - self.last_end), now

    def answer(self):
        if self.end_at is not None:
            return self.ended()
        while not select.select([sys.stdin], [], [], 0 if self.hold_at != self.steps else 0.02)[0]:
            if self.hold_at != self.steps:
                return False
        word, _, rest = sys.stdin.readline().strip().partition(" ")
        if word == "look":
            print(json.dumps(self.look()), flush=True)
        elif word == "loop":
            print(json.dumps({"step": self.steps, "longest_gap_seconds": self.longest}), flush=True)
            self.longest = 0.0
        elif word == "go":
            self.hold_at = self.steps + int(rest)
            print(json.dumps({"step": self.steps}), flush=True)
        else:
            self.end_at = int(rest or 0)
            return self.ended()
        self.last_end = time.perf_counter()  # answering is no part of training
        return self.answer() if self.hold_at == self.steps else False

    def ended(self):
        if self.steps < self.end_at:
            return False
        for parameter in self.net.parameters():
            self.digest.update(parameter.detach().numpy().tobytes())
        print(json.dumps({"steps": self.steps, "digest": self.digest.hexdigest()}), flush=True)
        return True

    def look(self):
        now = attributes()
        return {
            "modules": sorted(name for name in sys.modules if "gpuwatch" in name),
            "finders": [str(finder) for finder in sys.meta_path],
            "threads": sorted(thread.name for thread in threading.enumerate()),
            "tasks": len(os.listdir("/proc/self/task")),
            "descriptors": sorted(self.descriptors()),
            "collecting": gc.isenabled(),
            "main": sorted(vars(sys.modules["__main__"])),
            "patched": [name for name, value in self.before.items() if now.get(name, value) is not value],
            "pre_hooks": len(optimizer_module._global_optimizer_pre_hooks),
            "post_hooks": len(optimizer_module._global_optimizer_post_hooks),
            "optimizer_hooks": len(self.optimizer._optimizer_step_pre_hooks) + len(self.optimizer._optimizer_step_post_hooks),
        }

    @staticmethod
    def descriptors():
        for fd in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{fd}")
            except OSError:
                continue  # the one that listdir used
            yield fd + " " + target.partition(":")[0]


def main():
    precision = sys.argv[1] if len(sys.argv) > 1 else "fp32"
    workers = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    trainer = Trainer(precision, workers)
    print("ready", flush=True)
    trainer.run()


if __name__ == "__main__":
    main()
