"""Gradients contain NaN or infinity, and no loss scaler deals with it.

## What it means

A backward pass produced entries that are not finite. With a dynamic loss scale above 1 that is routine: the scaler skips
the step and lowers the scale (counted in `gpuwatch_train_nonfinite_gradients_total`, never an alarm). Without one, the
optimizer writes the damage into the weights, and into its own running averages, for good.

The `layer` is where it most likely began. Backward runs from the output to the input and carries a bad gradient along, so
the guilty layer is the last one, in the model's order, that is bad: those after it are still finite. When every layer is
bad the fault lies in the loss or in the forward pass, and no layer is named.

## The test

One entry or more of any gradient is not finite, in a step that was applied, or whose loss scale was not above 1, or that is
the `skipped_in_a_row`-th bad step in a row. The search for the scale, up to the first step that is applied, does not count.

## What to do

1. Look at the layer that is named: square roots and norms of zero vectors, divisions, log and pow have infinite
   derivatives where their value is still fine. Add an epsilon inside the square root, not outside it.
2. Under float16, use a GradScaler or bfloat16.
3. Return to a checkpoint from before `first_step` and clip gradients (`clip_grad_norm_(..., error_if_nonfinite=True)`).

## When it is wrong

A job that replaces such entries itself (`torch.nan_to_num_` on gradients) is told all the same: it is the gradient as
backward left it. Custom loss scalers that are not torch's GradScaler are not known, and their search for a scale looks like
a fault.
"""

from __future__ import annotations

import math
from array import array
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.rule import Quiet, Rule, Steps, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample


class Limits(Thresholds, frozen=True):
    skipped_in_a_row: Annotated[Steps, Meta(description="bad steps in a row after which the scaler's help is no excuse")] = 5


class NonfiniteGradient(Rule[Limits]):
    name = "nonfinite_gradient"
    severity = "critical"
    statistic = "gradient entries that are not finite"
    action = "Look for an infinite derivative (sqrt, norm, division, log) in that layer; use bfloat16 or a GradScaler; clip."
    thresholds_type = Limits

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._in_a_row = 0
        self._applied_once = False

    def judge(self, sample: Sample) -> Verdict | Quiet:
        count = sample.values.get("grad_nonfinite_count")
        if count is None:
            return Quiet.UNMEASURED
        self._applied_once = self._applied_once or sample.applied
        if not count > 0.0:
            self._in_a_row = 0
            return Quiet.FINE
        self._in_a_row += self._applied_once
        excused = not sample.applied and sample.values.get("loss_scale", 0.0) > 1.0
        if excused and self._in_a_row < self.thresholds.skipped_in_a_row:
            return Quiet.UNMEASURED
        layer = _origin(sample)
        where = f", first in {layer}" if layer else ""
        summary = f"{count:.0f} gradient entries are not finite at step {sample.number}{where}{sample.cause}."
        return Verdict(count, 0.0, summary, layer)


def _origin(sample: Sample) -> str:
    """The bad layer nearest the output, when the layers behind it are finite; else nothing is known."""
    counts = sample.column("gradient", "nonfinite_count")
    if counts is None:
        return ""
    bad = [index for index, count in enumerate(counts) if count > 0.0]
    finite = _measured(counts) - len(bad)
    return sample.names.name(bad[-1]) if bad and finite > 0 else ""


def _measured(counts: array[float]) -> int:
    return sum(not math.isnan(count) for count in counts)
