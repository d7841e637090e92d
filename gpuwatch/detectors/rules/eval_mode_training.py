"""The model is trained in eval mode.

## What it means

`model.eval()` switches dropout off and makes BatchNorm use, and no longer update, its running statistics. Usually an
evaluation has set it and nobody called `model.train()` afterwards: regularisation is gone from then on, without an error.

## The test

The module that owns the optimizer's tensors was in eval mode when backward ran, in `steps` steps running.

## What to do

Call `model.train()` at the start of each epoch, after every evaluation. To freeze BatchNorm or dropout on purpose, put only
those modules in eval mode.

## When it is wrong

Models without dropout and BatchNorm are the same in both modes. Some recipes fine-tune in eval mode on purpose, and
adversarial examples or style transfer do so for the gradient of their inputs: `[rules.eval_mode_training] enabled = false`
is for them.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.rule import Quiet, Rule, Steps, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample


class Limits(Thresholds, frozen=True):
    steps: Annotated[Steps, Meta(description="steps running")] = 10


class EvalModeTraining(Rule[Limits]):
    name = "eval_mode_training"
    severity = "warning"
    statistic = "steps running that were trained in eval mode"
    action = "Call model.train() before training goes on after an evaluation."
    thresholds_type = Limits
    quiet_steps = 5

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._in_a_row = 0
        self._trained_before = False

    def judge(self, sample: Sample) -> Verdict | Quiet:
        mode = sample.value("training_mode")
        if mode is None:
            return Quiet.UNMEASURED
        if mode > 0.0:
            self._in_a_row, self._trained_before = 0, True
            return Quiet.FINE
        self._in_a_row += 1
        if self._in_a_row < self.thresholds.steps:
            return Quiet.UNMEASURED
        first_step = max(1, sample.number - self._in_a_row + 1)
        since = f"since step {first_step}, when it was still in train mode before" if self._trained_before else "from the start"
        summary = f"The model is trained in eval mode {since}: dropout is off and BatchNorm keeps its statistics."
        return Verdict(self._in_a_row, self.thresholds.steps, summary, first_step=first_step)
