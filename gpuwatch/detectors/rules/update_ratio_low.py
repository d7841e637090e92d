"""Optimizer steps change the weights by next to nothing.

## What it means

The L2 norm of the update is compared with that of the weights. Around 1/1000 is healthy; below a ten-millionth, which is what
float32 can still tell apart, training stands still: the learning rate is too small by orders of magnitude, in the wrong unit,
or multiplied twice by a schedule.

## The test

update norm / weight norm of all weights together is below `ratio` in 10 measured steps running, with a learning rate above
zero, in a run whose updates never were above 100 times that: a run that has
converged, or whose schedule has ended, comes down to small updates in its own time. Steps at which a learning rate is still
rising are not judged, and neither are the first `warmup_steps` measurements.

## What to do

Raise the learning rate until the ratio is near 0.001 (the summary says by how much), or find one with `gpuwatch lr-find`.
With several parameter groups look at `update/LAYER/ratio` in TensorBoard. In float16 or bfloat16 weights small updates are
lost to rounding: keep the weights in float32 and use autocast.

## When it is wrong

Fine-tuning with a deliberately tiny learning rate, for instance in the last stage of distillation, or optimizing a few
entries of a very large tensor, whose norm hides the change.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.rule import Positive, Quiet, Rule, Steps, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample

_HEALTHY_RATIO = 1e-3
#: Updates this far above the threshold show that the run has trained.
_TRAINED_FACTOR = 100.0


class Limits(Thresholds, frozen=True):
    ratio: Annotated[Positive, Meta(description="update norm over weight norm")] = 1e-7
    warmup_steps: Annotated[Steps, Meta(description="first measurements that are not judged")] = 10


class UpdateRatioLow(Rule[Limits]):
    name = "update_ratio_low"
    severity = "warning"
    statistic = "update norm over weight norm (ratio)"
    action = "Raise the learning rate until the ratio is near 0.001; look at what multiplies it."
    thresholds_type = Limits
    open_after = 10
    open_within = 10
    quiet_steps = 5  # measurements

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._measured = 0
        self._largest = 0.0
        self._rate = 0.0  # the largest of the last step

    def judge(self, sample: Sample) -> Verdict | Quiet:
        rate = max((rate for groups in sample.step.groups.values() for rate, _ in groups), default=0.0)
        rising, self._rate = rate > self._rate, rate
        ratio = sample.value("update_ratio")
        if ratio is None or not sample.applied or not rate > 0.0:
            return Quiet.UNMEASURED
        self._measured += 1
        self._largest = max(self._largest, ratio)
        if rising or self._measured <= self.thresholds.warmup_steps:
            return Quiet.UNMEASURED
        limit = self.thresholds.ratio
        if ratio >= limit or self._largest > _TRAINED_FACTOR * limit:
            return Quiet.FINE
        factor = f"{_HEALTHY_RATIO / ratio:.1g} times less than is usual" if ratio > 0.0 else "which is nothing"
        summary = (
            f"One step changes the weights by {ratio:.2g} of their norm at step {sample.number}, {factor}, at rate {rate:.3g}."
        )
        return Verdict(ratio, limit, summary)
