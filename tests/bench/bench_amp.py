"""Speed-ups measured inside one run against those of two dedicated runs: blocks that take turns must tell the same ratio.

On a GPU: ResNet-50 (batches of 64 and 128) where torchvision is there, and a transformer of GPT-2's size, in float16 with
memory; on a CPU a small ResNet at two batch sizes and a small transformer in bfloat16. Every run is a process of its own, in
turns: without AMP, with AMP, the probe in an unmodified float32 job (`gpuwatch probe amp`), and `gpuwatch.compare_amp`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "hooks"), str(Path(__file__).parent)]

import torch  # noqa: E402  # a bench is a script, and scripts find the repository themselves
from amp_jobs import CUDA, HALF, cases, training  # noqa: E402
from gpuwatch_hooks import wire  # noqa: E402
from gpuwatch_hooks.amp import live, plan  # noqa: E402
from gpuwatch_hooks.amp.compare import compare_amp  # noqa: E402
from harness import Bench  # noqa: E402

from tests.bench.hooked import HookedSession  # noqa: E402

WARM_UP_STEPS = 5
BLOCK_STEPS = 6
LIMIT_RATIO = 0.05 if CUDA else 0.10
LIMIT_POINTS = 1.0
SECONDS = 180


def dedicated(name, half, steps):
    """One dedicated run: [seconds a step, median; peak bytes, 0 on a CPU]."""
    _, _, step = training(name)
    for _ in range(WARM_UP_STEPS):
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
    return [statistics.median(taken), torch.cuda.max_memory_allocated() if CUDA else 0]


def probed(name, rounds, block_steps):
    """The live probe in a job in float32: [speed-up, its interval's low and high end, share of memory saved]."""
    _, _, step = training(name)
    session = HookedSession(0.01)
    session.media = lambda *_: True
    session.recorder.install()
    request = {"rounds": rounds, "block_steps": block_steps, "first_step": WARM_UP_STEPS + 3}
    live.begin(session.recorder, {**request, "dtype": wire.AUTOCAST_DTYPES.index(str(HALF).rpartition(".")[2])})
    for _ in range(WARM_UP_STEPS + 10 + 2 * rounds * (block_steps + plan.WARM_UP_STEPS)):
        step()
    if CUDA:
        torch.cuda.synchronize()
        step()
    facts = {key: value for told in session.told for key, value in told.items()}
    if facts.get("amp_probe_failed", "it did not end"):
        raise SystemExit(f"{name} was not probed: {facts.get('amp_probe_failed')}")
    found = [facts[f"amp_speedup_{part}"] for part in ("ratio", "low", "high")]
    return [*found, facts.get("amp_memory_saving_ratio", 0.0)]


def compared(name, rounds, block_steps):
    """gpuwatch.compare_amp on the same step: as `probed`."""
    model, optimizer, step = training(name)
    for _ in range(WARM_UP_STEPS):
        step()
    line = compare_amp(step, model, optimizer, dtype=HALF, rounds=rounds, block_steps=block_steps).lines[1]
    return [line.speedup_ratio, line.speedup_low, line.speedup_high, line.memory_saving_ratio if CUDA else 0.0]


PARTS = {"dedicated": dedicated, "probed": probed, "compared": compared}


def in_process(part, *arguments):
    """What `part` of PARTS returns in a process of its own."""
    command = [sys.executable, __file__, "--part", json.dumps([part, *arguments])]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if ran.returncode:
        raise SystemExit(ran.stderr or ran.stdout)
    return json.loads(ran.stdout.splitlines()[-1])


def measured(bench, name):
    """One row: steps a second of the dedicated runs and their ratio, and what the two ways inside one run say."""
    steps, rounds, blocks = (10, 1, 3) if bench.quick else (20, 2, 6)
    apart, inside = {False: [], True: []}, {"probed": [], "compared": []}
    for turn in range(rounds):
        for half in (False, True) if turn % 2 else (True, False):
            apart[half].append(in_process("dedicated", name, half, steps))
        for way, found in inside.items():
            found.append(in_process(way, name, blocks, BLOCK_STEPS))
    plain, half = (statistics.median(run[0] for run in apart[precision]) for precision in (False, True))
    row = [name, f"{1 / plain:.3g}", f"{1 / half:.3g}", f"{plain / half:.3f}"]
    for way, found in inside.items():
        ratio = statistics.median(run[0] for run in found)
        spans = "; ".join(f"{low:.2f} to {high:.2f}" for _, low, high, _ in found)
        row.append(f"{ratio:.3f} ({spans})")
        bench.number(f"{name}: {way}, off by", 100 * (ratio / (plain / half) - 1), "%", at_most=100 * LIMIT_RATIO)
        bench.numbers[-1]["kept"] = abs(ratio / (plain / half) - 1) <= LIMIT_RATIO
        if CUDA:
            saved = 1 - statistics.median(run[1] for run in apart[True]) / statistics.median(run[1] for run in apart[False])
            off = 100 * abs(statistics.median(run[3] for run in found) - saved)
            bench.number(f"{name}: {way}, saving of {saved:.1%} off by", off, "points", at_most=LIMIT_POINTS)
    return row


def main():
    options = {
        "--part": {"metavar": "JSON", "help": "internal: one run"},
        "--case": {"metavar": "TEXT", "default": "", "help": "only the cases whose name has this"},
    }
    bench = Bench("amp", "Mixed precision: one alternating run against dedicated runs", options=options)
    if bench.options.part:
        part, *arguments = json.loads(bench.options.part)
        print(json.dumps(PARTS[part](*arguments)))
        return 0
    chosen = [name for name in cases() if bench.options.case in name]
    rows = [measured(bench, name) for name in chosen[: 1 if bench.quick else None]]
    half = str(HALF).rpartition(".")[2]
    columns = ("model", "float32 it/s", f"{half} it/s", "speed-up", "live probe (95 %)", "compare_amp (95 %)")
    bench.table("Dedicated runs (first three columns), and what one run that alternates says of the speed-up", columns, rows)
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
