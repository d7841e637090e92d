"""The loss is NaN or infinite, and the optimizer uses it.

## What it means

The forward pass produced a value that is not a number. Every gradient of that step is worthless, and once an update has
been made from it the weights are too: the run does not recover by itself. Frameworks may hide this: the Hugging Face Trainer
logs the running mean instead (`logging_nan_inf_filter`), so that a dead run shows a loss of 0.0.

A loss scaler skips steps whose gradients overflowed; such a step does no harm and is not reported here, unless it goes on
for `skipped_in_a_row` steps or the loss scale is no longer above 1. The search for the scale, up to the first step that is
applied, does not count.

## The test

The loss of one optimizer step (before any loss scale, mean of its micro-batches) is NaN, or plus or minus infinity.

## What to do

1. Look at the batch of that step: an empty batch, a label out of range, a division by a count that was zero.
2. Look at `exploding_gradient` and `update_ratio_high` just before: with those, lower the learning rate or clip.
3. Without them, look for log(0), 0/0, sqrt of a negative number or exp of a large one in the loss; under float16, for
   values above 65,504 (use bfloat16, or compute that part in float32).
4. Go back to the last checkpoint before `first_step`: the weights after it are damaged.

## When it is wrong

A loss that is masked later, or that a loop computes only to print it and leaves out of backward, is not seen: only losses
that backward is called on count. Under a loss scaler single infinite losses are routine, and excused as described.
"""

from __future__ import annotations

import math
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.rule import Quiet, Rule, Steps, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample


class Limits(Thresholds, frozen=True):
    skipped_in_a_row: Annotated[
        Steps, Meta(description="skipped steps in a row after which the scaler's help is no excuse")
    ] = 5


class NonfiniteLoss(Rule[Limits]):
    name = "nonfinite_loss"
    severity = "critical"
    statistic = "loss"
    action = "Return to a checkpoint from before this step; check its batch, then the learning rate and float16 overflow."
    thresholds_type = Limits

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._skipped = 0
        self._applied_once = False

    def judge(self, sample: Sample) -> Verdict | Quiet:
        loss = sample.values.get("loss")
        if loss is None:
            return Quiet.UNMEASURED
        self._applied_once = self._applied_once or sample.applied
        if math.isfinite(loss):
            self._skipped = 0
            return Quiet.FINE
        if not sample.applied and sample.values.get("loss_scale", 0.0) > 1.0:
            self._skipped += self._applied_once
            if self._skipped < self.thresholds.skipped_in_a_row:
                return Quiet.UNMEASURED
        return Verdict(loss, math.inf, f"The loss became {loss} at step {sample.number}{sample.cause}.")
