"""The loss scaler keeps backing off: float16 training has stalled.

## What it means

A GradScaler halves its scale and skips the step when a gradient overflows. Some skips at the start are the search for the
scale, and about one in 2,000 steps later is normal. When it skips step after step, or has come down to 1, the gradients
overflow at any scale: the model no longer learns, although the loop runs and the loss looks alive.

## The test

* `skipped_in_a_row` skipped steps one after the other, after the first step that was applied: a warning;
* the scale is at or below `scale` after at least one back-off in the last 200 steps: critical.

## What to do

1. Look at `nonfinite_gradient` and `exploding_gradient`: an overflow that no scale cures is a NaN, or a true explosion.
2. Prefer bfloat16 where the device has it: it needs no scaler.
3. Compute the part that overflows (softmax over long rows, variances, losses with large sums) in float32:
   `with torch.autocast("cuda", enabled=False)`.

## When it is wrong

A loop that sets the scale itself is followed, not judged. A model whose gradients do not fit float16 for a moment (after a
new head was added) recovers: the finding closes again.
"""

from __future__ import annotations

from collections import deque
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.rule import Positive, Quiet, Rule, Steps, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample

_BACKOFF_STEPS = 200


class Limits(Thresholds, frozen=True):
    skipped_in_a_row: Annotated[Steps, Meta(description="skipped steps one after the other")] = 5
    scale: Annotated[Positive, Meta(description="a loss scale that has come down to this is critical")] = 1.0


class LossScaleCollapse(Rule[Limits]):
    name = "loss_scale_collapse"
    severity = "warning"
    statistic = "loss scale"
    action = "Find what overflows (nonfinite_gradient names the layer); use bfloat16, or float32 for that part."
    thresholds_type = Limits

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._in_a_row = 0
        self._applied_once = False
        self._backoffs: deque[bool] = deque(maxlen=_BACKOFF_STEPS)

    def judge(self, sample: Sample) -> Verdict | Quiet:
        scale = sample.value("loss_scale")
        if scale is None:
            return Quiet.UNMEASURED
        self._in_a_row = 0 if sample.applied else self._in_a_row + 1
        self._applied_once = self._applied_once or sample.applied
        self._backoffs.append(sample.values.get("loss_scale_backoffs", 0.0) > 0.0)
        limits = self.thresholds
        if scale <= limits.scale and any(self._backoffs):
            summary = f"The loss scale has come down to {scale:g} at step {sample.number}{sample.cause}."
            return Verdict(scale, limits.scale, summary, severity="critical")
        if self._applied_once and self._in_a_row >= limits.skipped_in_a_row:
            summary = (
                f"The loss scaler skipped {self._in_a_row} steps in a row up to step {sample.number}; the scale is {scale:g}"
                f"{sample.cause}."
            )
            return Verdict(scale, limits.scale, summary, first_step=max(1, sample.number - self._in_a_row + 1))
        return Quiet.FINE
