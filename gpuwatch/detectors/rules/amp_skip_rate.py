"""The loss scaler skips far more steps than it should.

## What it means

Each skipped step is a batch that was computed and thrown away. With PyTorch's defaults (the scale doubles every 2,000 steps
and halves on overflow) about 0.05 % of steps are skipped. Several percent mean that the gradients' range does not fit
float16: some overflow while others underflow to zero.

## The test

More than `ratio` of the last 200 steps were skipped. The first `warmup_steps` steps, in which the scale is searched for,
do not count.

## What to do

1. Look at the layer with the largest `grad/LAYER/absmax`: normalise it, clip, or run it in float32.
2. Raise `growth_interval` when each growth is followed by an overflow at once.
3. Prefer bfloat16 where the device has it.

## When it is wrong

With a short `growth_interval` the scale is tried again and again on purpose: each try costs one step.
"""

from __future__ import annotations

from collections import deque
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.rule import Quiet, Rule, Share, Steps, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample

_STEPS = 200
_ENOUGH_STEPS = 100


class Limits(Thresholds, frozen=True):
    ratio: Annotated[Share, Meta(description="share of the last 200 steps that were skipped")] = 0.05
    warmup_steps: Annotated[Steps, Meta(description="first steps, the search for the scale, that do not count")] = 50


class AmpSkipRate(Rule[Limits]):
    name = "amp_skip_rate"
    severity = "warning"
    statistic = "share of the last 200 steps that were skipped (ratio)"
    action = "Use bfloat16, or find the layer whose gradients overflow and run it in float32; raise growth_interval."
    thresholds_type = Limits

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._seen = 0
        self._skipped: deque[bool] = deque(maxlen=_STEPS)
        self._count = 0

    def judge(self, sample: Sample) -> Verdict | Quiet:
        if "loss_scale" not in sample.values:
            return Quiet.UNMEASURED
        self._seen += 1
        if self._seen <= self.thresholds.warmup_steps:
            return Quiet.UNMEASURED
        if len(self._skipped) == _STEPS:
            self._count -= self._skipped[0]
        self._skipped.append(not sample.applied)
        self._count += not sample.applied
        ratio = self._count / len(self._skipped)
        if len(self._skipped) < _ENOUGH_STEPS or ratio <= self.thresholds.ratio:
            return Quiet.FINE
        summary = f"The loss scaler skipped {self._count} of the last {len(self._skipped)} steps at step {sample.number}."
        return Verdict(ratio, self.thresholds.ratio, summary, first_step=max(1, sample.number - len(self._skipped) + 1))
