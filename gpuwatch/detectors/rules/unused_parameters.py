"""Some trainable tensors never get a gradient.

## What it means

The optimizer holds tensors that the loss does not depend on: a branch that is not called, an output that no loss uses, a
tensor behind `detach()` or `no_grad()`. They keep their initial values. Under DistributedDataParallel this also hangs or
raises an error unless `find_unused_parameters` is set, which costs time.

## The test

In each of the last `steps` applied steps at least one tensor that wants a gradient had none at the optimizer's step. The
layer is the first one that never had one. When these tensors hold more than `warning_ratio` of all entries it is a warning,
else info. Frozen tensors (`requires_grad=False`) do not count.

## What to do

1. See whether the layer is called in `forward`, and whether its output reaches the loss without `detach()`.
2. Remove what is not needed, or freeze it.

## When it is wrong

Heads that only some batches use get their gradient now and then and are not meant; one for a task that comes later in the
run is told until then. A pretrained model's pooler or unused head is harmless: it is info.
"""

from __future__ import annotations

import math
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.rule import Quiet, Rule, Share, Steps, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample


class Limits(Thresholds, frozen=True):
    steps: Annotated[Steps, Meta(description="applied steps running")] = 50
    warning_ratio: Annotated[Share, Meta(description="share of all entries from which on it is a warning")] = 0.05


class UnusedParameters(Rule[Limits]):
    name = "unused_parameters"
    severity = "info"
    statistic = "trainable tensors that never got a gradient"
    action = "See that the layer is called and that its output reaches the loss; remove or freeze what is not needed."
    thresholds_type = Limits
    quiet_steps = 5

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._in_a_row = 0
        self._fewest = 0.0
        self._never: set[int] | None = None  # tensors without a gradient in every table since it began
        self._table_version = -1

    def judge(self, sample: Sample) -> Verdict | Quiet:
        count = sample.value("tensors_without_gradient")
        if count is None or not sample.applied or sample.value("grad_norm") is None:
            return Quiet.UNMEASURED
        if sample.new_regime or sample.names.version != self._table_version:
            self._in_a_row, self._never, self._table_version = 0, None, sample.names.version
        if count <= 0.0:
            self._in_a_row, self._never = 0, None
            return Quiet.FINE
        self._fewest = count if self._in_a_row == 0 else min(count, self._fewest)
        self._in_a_row += 1
        self._look(sample)
        if self._in_a_row < self.thresholds.steps:
            return Quiet.UNMEASURED
        if self._never is not None and not self._never:
            return Quiet.FINE  # another one each time
        return self._verdict(sample)

    def _look(self, sample: Sample) -> None:
        due = self._never is None or self._in_a_row % 10 == 0 or len(self._never) > self._fewest
        norms = sample.gradient_norms if due else None
        if norms is None:
            return
        without = {index for index, norm in enumerate(norms) if math.isnan(norm)}
        self._never = without if self._never is None else self._never & without

    def _verdict(self, sample: Sample) -> Verdict:
        never = sorted(self._never or ())
        sizes = sample.names.numels
        total = sum(sizes)
        entries = sum(sizes[index] for index in never if index < len(sizes))
        share = entries / total if total else 0.0
        severity = "warning" if share > self.thresholds.warning_ratio else "info"
        layer = sample.names.name(never[0]) if never else ""
        where = f", {layer} first of all," if layer else ""
        summary = f"{self._fewest:.0f} tensors{where} have had no gradient in the {self._in_a_row} steps up to {sample.number}."
        first_step = max(1, sample.number - self._in_a_row + 1)
        return Verdict(self._fewest, 0.0, summary, layer, severity, first_step)
