"""Speed-ups measured inside one run against those of two dedicated runs: blocks that take turns must tell the same ratio.

On a GPU: ResNet-50 (batches of 64 and 128) where torchvision is there, and a transformer of GPT-2's size, in float16 with
memory; on a CPU a perceptron and a small transformer in bfloat16. Dedicated runs are processes of their own, in turns.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "hooks"), str(Path(__file__).parent)]

import torch  # noqa: E402  # a bench is a script, and scripts find the repository themselves
from gpuwatch_hooks.amp.compare import compare_amp  # noqa: E402
from harness import Bench  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
HALF = torch.float16 if CUDA else torch.bfloat16


class Transformer(nn.Module):
    def __init__(self, layers, width, vocabulary):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(
            width, max(1, width // 64), 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens):
        return self.head(self.layers(self.embedding(tokens)))


def perceptron():
    return nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 512)), torch.randn(
        128, 512
    )


def transformer(layers=4, width=256, vocabulary=1000, batch=8, length=64):
    return Transformer(layers, width, vocabulary), torch.randint(0, vocabulary, (batch, length))


def resnet(batch):
    import torchvision

    return torchvision.models.resnet50(num_classes=100), torch.randn(batch, 3, 224, 224)


def cases():
    if not CUDA:
        return {"perceptron 512-2048-2048-512, batch 128": perceptron, "transformer 4 x 256, 8 x 64 tokens": transformer}
    found = {"transformer of GPT-2's size, 16 x 512 tokens": lambda: transformer(12, 768, 50257, 16, 512)}
    try:
        import torchvision  # noqa: F401
    except ImportError:
        print("torchvision is not here: ResNet-50 is left out", file=sys.stderr)
        return found
    return {"ResNet-50, batch 64": lambda: resnet(64), "ResNet-50, batch 128": lambda: resnet(128), **found}


def training(name):
    """(model, optimizer, step) of a case; the step opens no autocast region itself."""
    torch.manual_seed(0)
    torch.set_num_threads(1 if not CUDA else torch.get_num_threads())
    torch.backends.cudnn.benchmark = True
    model, inputs = cases()[name]()
    model, inputs = model.to(DEVICE), inputs.to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)

    def step(half=False):
        with torch.autocast(DEVICE.type, dtype=HALF, enabled=half):
            output = model(inputs)
        loss = (
            functional.cross_entropy(output.flatten(0, 1), inputs.flatten())
            if inputs.dtype == torch.int64
            else output.float().square().mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return model, optimizer, step


def dedicated(name, half, steps):
    """One process's own answer: (seconds a step, median; peak bytes)."""
    _, _, step = training(name)
    for _ in range(5):
        step(half)
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    taken = []
    for _ in range(steps):
        began = time.perf_counter()
        step(half)
        if CUDA:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken), torch.cuda.max_memory_allocated() if CUDA else math.nan


def in_processes(name, steps, rounds):
    """(speed-up, share of memory saved) of dedicated runs, A B A B, medians."""
    found = {False: [], True: []}
    for _ in range(rounds):
        for half in (False, True):
            command = [sys.executable, __file__, "--dedicated", json.dumps([name, half, steps])]
            found[half].append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    seconds, peaks = ({half: statistics.median(run[i] for run in runs) for half, runs in found.items()} for i in (0, 1))
    return seconds[False] / seconds[True], 1 - peaks[True] / peaks[False]


def main():
    options = {"--dedicated": {"metavar": "JSON", "help": "internal: one dedicated run"}}
    bench = Bench("amp", "Mixed precision: one alternating run against dedicated runs", options=options)
    if bench.options.dedicated:
        print(json.dumps(dedicated(*json.loads(bench.options.dedicated))))
        return 0
    steps, rounds, blocks = (10, 1, 3) if bench.quick else (40, 2, 8)
    rows = []
    for name in list(cases())[: 1 if bench.quick else None]:
        apart, saved_apart = in_processes(name, steps, rounds)
        model, optimizer, step = training(name)
        for _ in range(5):
            step()
        live = compare_amp(step, model, optimizer, dtype=HALF, rounds=blocks, block_steps=6).lines[1]
        del model, optimizer, step
        off = abs(live.speedup_ratio / apart - 1)
        rows.append(
            [
                name,
                f"{apart:.3f}",
                f"{live.speedup_ratio:.3f} ({live.speedup_low:.3f} to {live.speedup_high:.3f})",
                f"{off:.1%}",
            ]
        )
        bench.number(f"{name}: off by", 100 * off, "%", at_most=5 if CUDA else 10)
        if CUDA:
            bench.number(f"{name}: saving off by", 100 * abs(live.memory_saving_ratio - saved_apart), "points", at_most=1)
    bench.table("speed-up", ("model", "dedicated runs", "one run that alternates (95 %)", "apart"), rows)
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
