"""`gpuwatch.compare_amp(step, model, optimizer)`: what mixed precision brings, by hand, everything as before afterwards."""

import collections
import sys

from .. import keepsake, untraced
from .plan import Plan
from .stopwatch import Stopwatch
from .switch import VARIANTS, Switch

#: One variant's line. Memory in bytes, NaN on a CPU; ratios against the first variant, with a 95 % confidence interval.
Line = collections.namedtuple(
    "Line", "variant steps_per_second peak_bytes speedup_ratio speedup_low speedup_high memory_saving_ratio"
)


class AmpResult:
    """`lines`: a Line for each variant, the first one the base. `best`: the fastest line whose interval is above 1, or None."""

    def __init__(self, plan):
        base_peak = plan.peak_bytes(0)
        self.lines = []
        for index, variant in enumerate(plan.variants):
            ratio, low, high = plan.speedup(index) if index else (1.0, 1.0, 1.0)
            peak = plan.peak_bytes(index)
            saving = 1.0 - peak / base_peak
            self.lines.append(Line(variant, plan.steps_per_second(index), peak, ratio, low, high, saving))
        faster = [line for line in self.lines if line.speedup_low > 1.0]
        self.best = max(faster, key=lambda line: line.speedup_ratio) if faster else None

    def markdown(self):
        """The table, for TensorBoard or a notebook."""
        return table(self.lines)

    def __repr__(self):
        return "AmpResult(%s)" % ", ".join("%s %.2fx" % (line.variant, line.speedup_ratio) for line in self.lines)


def table(lines):
    """Lines as a Markdown table."""
    rows = ["| precision | it/s | speed-up (95 %) | peak memory | saved |", "|---|---:|---:|---:|---:|"]
    for line in lines:
        known = line.peak_bytes == line.peak_bytes
        peak = "%.0f MiB" % (line.peak_bytes / 2**20) if known else "-"
        saved = "%.1f %%" % (100 * line.memory_saving_ratio) if known else "-"
        speedup = "%.2fx (%.2f to %.2f)" % (line.speedup_ratio, line.speedup_low, line.speedup_high)
        rows.append("| %s | %.4g | %s | %s | %s |" % (line.variant, line.steps_per_second, speedup, peak, saved))
    return "\n".join(rows) + "\n"


def compare_amp(step, model, optimizer, dtype=None, scaler=None, rounds=6, block_steps=5, restore=True):
    """Take steps in float32 and in lower precision, in blocks in random order; an AmpResult.

    `step()` takes one whole training step of your own; `model` is the torch.nn.Module that it calls (or a list of them), whose
    forward passes run under torch.autocast in turn, whatever `step` itself has open; `optimizer` likewise one or a list.
    `dtype`: torch.float16, torch.bfloat16, their names, or None: what the device has (TF32 too). Steps are real
    steps; afterwards weights, buffers, optimizers, `scaler` and random numbers are as before, bit for bit, unless `restore`
    is false; also when `step` raises, whose exception passes. A float16 step without a scaler has the speed of one with it, but
    may lose small gradients, which does not matter here. Waits for the device. Raises ValueError for an unknown dtype.
    """
    modules = list(model) if isinstance(model, (list, tuple)) else [model]
    optimizers = list(optimizer) if isinstance(optimizer, (list, tuple)) else [optimizer]
    device = next(parameter for module in modules for parameter in module.parameters()).device
    variants = ["float32", _named(dtype)] if dtype is not None else available(device)
    before = keepsake.Keepsake(modules, optimizers, [] if scaler is None else [scaler]) if restore else None
    plan = Plan(variants, rounds, block_steps, seed=0)
    switch, watch = Switch(modules, device.type), Stopwatch(device)
    try:
        for index in range(plan.steps):
            if index % plan.block_steps == 0:
                switch.set(variants[plan.variant_of(index)])
                watch.lap(None)
                watch.forget_peak()
            step()
            watch.lap(index)
        for lap in watch.laps(wait=True):
            plan.add(lap.label, lap.seconds, lap.peak_bytes)
    finally:
        switch.remove()
        if before is not None:
            before.restore()
    if not switch.forwards:
        raise ValueError("step() never called the model that was given: nothing was compared")
    return AmpResult(plan)


untraced.hide(compare_amp)


def available(device):
    """The variants that a device has, float32 first."""
    torch = sys.modules["torch"]
    if device.type != "cuda":
        return ["float32", "bfloat16"]
    found = ["float32"]
    if torch.cuda.get_device_capability(device) >= (8, 0):
        found.append("tf32")
    found.append("float16")
    return [*found, "bfloat16"] if torch.cuda.is_bf16_supported() else found


def _named(dtype):
    name = str(dtype).rpartition(".")[2]
    if name not in VARIANTS or VARIANTS[name][0] is None:
        raise ValueError("dtype is torch.float16 or torch.bfloat16, not %r" % (dtype,))
    return name
