"""Gradients are never cleared: each step adds to those of all steps before.

## What it means

`optimizer.zero_grad()` is missing, or is called on another optimizer or model than the one that steps. The gradient is the
sum over all batches so far, so steps grow, point backwards in time, and training oscillates or diverges.

## The test

It is exact. When a backward call begins, the hooks look whether a gradient is still what the last step (or backward) left,
by identity and version: `zero_grad` in either form changes that. A step is bad when no backward call since the optimizer's
step before found it cleared, so accumulation over micro-batches is not meant. The hooks tell it once it has been so for 3
steps, and it opens at `steps` steps.

## What to do

Call `optimizer.zero_grad()` once an optimizer step: before the first backward call of the step, or after `optimizer.step()`.

## When it is wrong

A loop that keeps gradients on purpose (a hand-made momentum) does what this says.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.rule import Quiet, Rule, Steps, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample


class Limits(Thresholds, frozen=True):
    steps: Annotated[Steps, Meta(description="steps running")] = 5


class GradientsNotZeroed(Rule[Limits]):
    name = "gradients_not_zeroed"
    severity = "critical"
    statistic = "steps running that began with the gradients of the step before"
    action = "Call optimizer.zero_grad() once a step, on the optimizer that steps, before the first backward call."
    thresholds_type = Limits
    quiet_steps = 5

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._since: dict[str, int] = {}  # tensor that was looked at -> step from which on it has been kept

    def judge(self, sample: Sample) -> Verdict | Quiet:
        self._since = sample.states("gradients_kept", self._since)
        if not self._since:
            return Quiet.FINE
        layer, since = min(self._since.items(), key=lambda item: item[1])
        count = sample.number - since + 1
        if count < self.thresholds.steps:
            return Quiet.FINE
        summary = f"Gradients have not been cleared since step {since}: step {sample.number} used the sum of {count} steps."
        return Verdict(count, self.thresholds.steps, summary, layer, first_step=since)
