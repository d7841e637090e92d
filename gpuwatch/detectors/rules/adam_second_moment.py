"""Gradients have outgrown Adam's second moment: its steps are much larger than the learning rate says.

## What it means

Adam divides each gradient by the root of a slow mean of its squares. When gradients grow faster than that mean can follow
(a new kind of data, a loss that is scaled differently, an unstable attention layer), the quotient is far above 1 and so is
the step. Loss spikes of large models come 1 to 8 steps after this.

## The test

For weight matrices, some at each step that is measured: the norm of the gradient over the root of the sum of v, with Adam's
own bias correction, once the tensor has made 20 steps. A measured step is bad when it is above `info_ratio` for some
matrix; it opens when 3 of the last 5 are bad, as info, or as a warning from `warning_ratio` on. Steps whose loss is below 5 %
of the first losses are fine: down there Adam is thrown up now and then, and returns.

## What to do

1. Look at what changed at `first_step`: the data, the scale of the loss, layers that were thawed.
2. Lower beta2 (0.95 instead of 0.999), clip gradients, or clip updates as StableAdamW does.

## When it is wrong

Gradients that are rare and large by nature (sparse features, a reward now and then) exceed their mean of squares whenever
they come; embeddings are left out for that reason. While gradients grow in the first steps of a run or after a restart, the
moment lags for 1/(1 - beta2) steps without harm.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.learned import Learned
from gpuwatch.detectors.matrices import matrices
from gpuwatch.detectors.rule import Positive, Quiet, Rule, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample


class Limits(Thresholds, frozen=True):
    info_ratio: Annotated[Positive, Meta(description="gradient over the moment's root that is worth a note")] = 5.0
    warning_ratio: Annotated[Positive, Meta(description="gradient over the moment's root that is a warning")] = 10.0


class AdamSecondMoment(Rule[Limits]):
    name = "adam_second_moment"
    severity = "info"
    statistic = "norm of the gradient over the root of the sum of Adam's second moment (ratio)"
    action = "Look at what changed at first_step; lower beta2, or clip gradients."
    thresholds_type = Limits
    open_after = 3
    open_within = 5

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._learned = Learned()
        self._table_version = -1
        self._matrices: list[int] = []

    def judge(self, sample: Sample) -> Verdict | Quiet:
        converged = self._learned.has_nearly_all(self._learned.observe(sample))
        ratios = sample.column("second_moment", "norm")
        if ratios is None or not sample.applied:
            return Quiet.UNMEASURED
        if sample.names.version != self._table_version:
            self._table_version, self._matrices = sample.names.version, matrices(sample.names)
        measured = [index for index in self._matrices if index < len(ratios) and ratios[index] >= 0.0]
        if not measured:
            return Quiet.UNMEASURED
        worst = max(measured, key=ratios.__getitem__)
        ratio, limits = ratios[worst], self.thresholds
        if ratio <= limits.info_ratio or converged:
            return Quiet.FINE
        severity = "warning" if ratio > limits.warning_ratio else "info"
        threshold = limits.warning_ratio if severity == "warning" else limits.info_ratio
        layer = sample.names.name(worst)
        summary = f"The gradient of {layer} is {ratio:.3g} times the root of Adam's second moment at step {sample.number}."
        return Verdict(ratio, threshold, summary, layer, severity)
