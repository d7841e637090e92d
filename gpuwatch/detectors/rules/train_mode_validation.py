"""The model is validated in train mode.

## What it means

`model.eval()` is missing before the validation pass: dropout stays on and makes the score worse than the model is, and
BatchNorm normalises with, and learns from, the validation data, which leaks it into the model.

## The test

Two things give a pass away. Inside `torch.no_grad()` or `inference_mode()` a DataLoader was asked for batches, two or more
without a backward call between; then the mode is that of the module that owns the optimizer's tensors. Or the count of batches
of its BatchNorm changed inside such a block, which happens in train mode only. It opens at the `passes`-th such pass in
train mode, and closes after 2 passes in eval mode, or when for 3 times the usual distance there was no pass.

## What to do

Call `model.eval()` before validation and `model.train()` after it; switching gradients off does not do that.

## When it is wrong

`torch.optim.swa_utils.update_bn` and other recalibrations of BatchNorm run in train mode on purpose, as does Monte Carlo
dropout: a single pass is never told. A model without BatchNorm that is validated without a DataLoader, or with a `no_grad`
for each batch, is not seen.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.rule import Quiet, Rule, Steps, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample

_DISTANCES = 3


class Limits(Thresholds, frozen=True):
    passes: Annotated[Steps, Meta(description="validation passes in train mode")] = 2


class TrainModeValidation(Rule[Limits]):
    name = "train_mode_validation"
    severity = "warning"
    statistic = "validation passes in train mode"
    action = "Call model.eval() before validation and model.train() after it."
    thresholds_type = Limits
    quiet_steps = 2  # passes

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._count = 0
        self._first_step = 0
        self._last_step = 0  # of the last pass
        self._every = 0  # steps between the last two passes

    def judge(self, sample: Sample) -> Verdict | Quiet:
        passes = sample.news("validation_pass")
        if not passes:
            gone = self._every and sample.number - self._last_step > _DISTANCES * self._every
            return Quiet.FINE if gone else Quiet.UNMEASURED
        for event in passes:
            if self._last_step:
                self._every = max(1, event.step - self._last_step)
            self._last_step = event.step
            if event.value > 0.0:  # 1: in train mode
                self._count += 1
                self._first_step = self._first_step or max(1, event.step)
        if not passes[-1].value > 0.0 or self._count < self.thresholds.passes:
            return Quiet.FINE
        summary = f"{self._count} validation passes ran in train mode, the last one after step {passes[-1].step}."
        return Verdict(self._count, self.thresholds.passes, summary, first_step=self._first_step)
