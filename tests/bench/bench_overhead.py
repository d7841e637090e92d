"""What the whole hook set costs a training step, beside what people usually write to see their gradients.

On the CPU, and on a GPU where there is one (`--device cuda` leaves the CPU out).
"""

import contextlib
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "hooks"))

import torch
from torch import nn

from tests.bench.gpu_overhead import on_a_gpu
from tests.bench.harness import Bench
from tests.bench.hooked import HookedSession

LAYERS, WIDTH, HEADS, WORDS = 12, 256, 8, 2000


class Transformer(nn.Module):
    """About 10 M parameters in about 150 tensors."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, tokens):
        return self.head(self.layers(self.embed(tokens)))


class Job:
    """One training loop; `observe(model, step)` runs between backward and step, as a logging loop would."""

    def __init__(self, batch, tokens):
        torch.manual_seed(0)
        self.model = Transformer()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.tokens = torch.randint(WORDS, (batch, tokens))
        self.steps = 0

    def seconds(self, count, observe=None):
        """(wall seconds, processor seconds) of `count` steps."""
        began = time.perf_counter(), time.process_time()
        for _ in range(count):
            loss = nn.functional.cross_entropy(self.model(self.tokens).flatten(0, 1), self.tokens.flatten())
            self.optimizer.zero_grad()
            loss.backward()
            if observe is not None:
                observe(self.model, self.steps)
            self.optimizer.step()
            self.steps += 1
        return time.perf_counter() - began[0], time.process_time() - began[1]


def usual_loop(model, _step):
    """The line that tutorials show."""
    return [p.grad.abs().mean().item() for p in model.parameters()]


def four_statistics(model, _step):
    """What people write when they want to see more."""
    return [
        (g.norm().item(), g.abs().max().item(), g.mean().item(), g.std().item()) for g in (p.grad for p in model.parameters())
    ]


def histograms(model, step):
    """A histogram of each gradient at every tenth step, as wandb.watch and its like take them."""
    return [torch.histc(p.grad, 64).tolist() for p in model.parameters()] if step % 10 == 0 else None


class Hooks:
    """The hook set on one job, put in and taken out between blocks; the plan of the governor lives on."""

    def __init__(self, budget):
        self.session = HookedSession(budget)

    def host_microseconds(self):
        """A list that fills with what the hooks take of the training thread, a step."""
        recorder, found = self.session.recorder, []
        account = recorder._account

        def noted(part, hook_ns):
            found.append(hook_ns / 1000)
            account(part, hook_ns)

        recorder._account = noted
        return found

    @contextlib.contextmanager
    def installed(self):
        self.session.recorder.previous_end = None  # the time since the last block is nobody's step
        self.session.recorder.install()
        try:
            yield
        finally:
            self.session.ledger.remove()

    def run(self, job, count):
        with self.installed():
            return job.seconds(count)


def compare(job, run, rounds, block):
    """(wall, processor) lists of observed/plain over rounds of A B, B A; a block is `block` steps."""
    wall, processor = [], []
    for turn in range(rounds):
        if turn % 2:
            observed, plain = run(job, block), job.seconds(block)
        else:
            plain, observed = job.seconds(block), run(job, block)
        wall.append(observed[0] / plain[0])
        processor.append(observed[1] / plain[1])
    return wall, processor


def quartiles(ratios):
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def on_the_demo(bench):
    """A step so short that only the fixed cost counts: is it small, and do the hooks tell the truth about it?"""
    from tests.bench.demo_job import DemoJob  # the demo's data are scikit-learn's, which a machine with a GPU may lack

    torch.set_num_threads(1)
    job, hooks = DemoJob(), Hooks(0.01)
    job.seconds(50)
    hooks.run(job, 300)  # until the plan stands
    own = hooks.host_microseconds()
    rounds, block = (12, 30) if bench.quick else (60, 40)
    rows = []
    for name, run in (("plain, twice", lambda job, count: job.seconds(count)), ("gpuwatch, budget 1 %", hooks.run)):
        wall, processor = compare(job, run, rounds, block)
        rows.append((name, quartiles(wall), quartiles(processor), rounds))
    plain_us = 1e6 * job.seconds(4 * block)[1] / (4 * block)
    title = f"the demo: {len(list(job.model.parameters()))} tensors, plain step {plain_us / 1000:.1f} ms, 1 thread, "
    title += f"blocks of {block} steps; median and quartiles of observed over plain"
    bench.table(title, ("observer", "wall time", "processor time", "rounds"), rows)
    assert not hooks.session.faults, hooks.session.faults
    share, governor = statistics.median(own) / plain_us, hooks.session.recorder.governor
    bench.number("demo: processor time over plain, median", statistics.median(processor), "ratio", at_most=1.06)
    bench.number("demo: the hooks' own measure, median of a step", statistics.median(own), "us", note=governor.describe(1))
    bench.number("demo: the same over a plain step", share, "ratio")
    unseen = statistics.median(processor) - 1.0 - share
    bench.number("demo: what the hooks do not see of it", unseen, "ratio", note="calls to wrappers, caches refilled")


def main():
    bench = Bench(
        "overhead",
        "The hook set in a training step, every step, alternating blocks",
        options={
            "--threads": {"type": int, "default": 1},
            "--batch": {"type": int, "default": 2},
            "--demo": {"action": "store_true", "help": "the demo's loop alone"},
            "--device": {"choices": ["cpu", "cuda", "both"], "default": "both"},
        },
    )
    if bench.options.device != "cuda":
        on_the_demo(bench)
        if not bench.options.demo:
            on_the_cpu(bench)
    if bench.options.device != "cpu" and torch.cuda.is_available():
        on_a_gpu(bench, Hooks, quartiles)
    return bench.finish()


def on_the_cpu(bench):
    torch.set_num_threads(bench.options.threads)
    job = Job(bench.options.batch, 32 if bench.quick else 128)
    tensors = list(job.model.parameters())
    rounds, block = (4, 4) if bench.quick else (16, 8)
    job.seconds(3)
    budgeted, everything = Hooks(0.01), Hooks(1.0)
    budgeted.run(job, 24 if bench.quick else 64)  # until the plan stands
    observers = {
        "plain, twice": lambda job, count: job.seconds(count),
        "gpuwatch, budget 1 %": budgeted.run,
        "gpuwatch, budget off: all statistics at every step": everything.run,
        "p.grad.abs().mean().item() for each": lambda job, count: job.seconds(count, usual_loop),
        "norm, absmax, mean, std by .item()": lambda job, count: job.seconds(count, four_statistics),
        "histc(64) for each, every 10th step": lambda job, count: job.seconds(count, histograms),
    }
    rows, measured = [], {}
    for name, run in observers.items():
        few = rounds if "budget 1" in name or "twice" in name else max(4, rounds // 4)
        wall, processor = measured[name] = compare(job, run, few, block)
        rows.append((name, quartiles(wall), quartiles(processor), few))
    step_ms = 1000 * job.seconds(8)[0] / 8
    title = f"{len(tensors)} tensors, {sum(p.numel() for p in tensors) / 1e6:.1f} M parameters, plain step {step_ms:.0f} ms, "
    title += f"{bench.options.threads} thread(s), blocks of {block} steps; median and quartiles of observed over plain"
    bench.table(title, ("observer", "wall time", "processor time", "rounds"), rows)
    recorder, faults = budgeted.session.recorder, budgeted.session.faults + everything.session.faults
    assert not faults, faults
    governor = recorder.governor
    wall, processor = (statistics.median(ratios) for ratios in measured["gpuwatch, budget 1 %"])
    bench.number("step with hooks over plain step, wall time, median", wall, "ratio", note="feels what else runs here")
    bench.number("step with hooks over plain step, processor time, median", processor, "ratio", at_most=1.03)
    bench.number("the hooks' own measure of it", governor.overhead_ratio, "ratio", note=governor.describe(1))
    bench.number("families thinned to keep the budget", governor.thinning_level, "of 3", at_least=1)
    bench.number(
        "what is never thinned, of a step", governor.base_ratio, "ratio", note="one read of every gradient, and the hooks"
    )


if __name__ == "__main__":
    raise SystemExit(main())
