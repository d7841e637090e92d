"""The first layers get next to no gradient, and do not learn.

## What it means

Gradients shrink from layer to layer on their way back until what reaches the first layers changes nothing: deep networks
without normalisation or residual connections, saturated sigmoids or tanhs, a poor initialisation. The last layers train on
top of random features.

## The test

Only matrices count (no biases, gains or embeddings), in the model's order, and only ratios: a small gradient is no fault in
a run that has converged. For every 10th step that carries layers, r = gradient norm / weight norm of each matrix. A step
is bad when

* the median r of the first third of the matrices is below `profile_ratio` times that of the last third, **and**
* the updates of the first third change its weights by less than `update_ratio` of their norm (median),

and it opens when 15 of 20 such steps are bad. Adaptive optimizers rescale small gradients, so there the second part decides.
It needs 6 matrices, and updates that were measured.

## What to do

1. Put normalisation (LayerNorm, BatchNorm) or residual connections between the layers.
2. Replace sigmoid or tanh by ReLU or GELU; initialise for the activation (`kaiming_normal_`, `xavier_normal_`).
3. Under float16, look at `amp_underflow`: gradients may vanish only in the number format.

## When it is wrong

Tables list tensors in the optimizer's order; where that is not the order from input to output (several groups, sorted by
name), first and last third mean something else. Layers that are meant to learn slowly (a pretrained trunk with a tiny rate)
meet both conditions.
"""

from __future__ import annotations

import math
from array import array
from statistics import median
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.matrices import matrices
from gpuwatch.detectors.rule import Positive, Quiet, Rule, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample

_EVERY = 10
_MIN_MATRICES = 6


class Limits(Thresholds, frozen=True):
    profile_ratio: Annotated[Positive, Meta(description="first third over last third, of gradient over weight norm")] = 1e-3
    update_ratio: Annotated[Positive, Meta(description="update over weight norm of the first third")] = 1e-7


class VanishingGradient(Rule[Limits]):
    name = "vanishing_gradient"
    severity = "warning"
    statistic = "gradient over weight norm, first third of the layers over the last (ratio)"
    action = "Add normalisation or residual connections, use ReLU or GELU, and initialise for the activation."
    thresholds_type = Limits
    open_after = 15
    open_within = 20

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._seen = 0
        self._weights: array[float] | None = None  # the last that were measured: they are sampled less often than gradients
        self._updates: array[float] | None = None
        self._table_version = -1
        self._matrices: list[int] = []

    def judge(self, sample: Sample) -> Verdict | Quiet:
        self._weights = sample.column("weight", "norm") or self._weights
        self._updates = sample.column("update", "norm") or self._updates
        if not sample.has_layers or not sample.applied:
            return Quiet.UNMEASURED
        self._seen += 1
        if self._seen % _EVERY:
            return Quiet.UNMEASURED
        if sample.names.version != self._table_version:
            self._table_version = sample.names.version
            self._matrices = matrices(sample.names)
        gradients = sample.gradient_norms
        if gradients is None or self._weights is None or self._updates is None or len(self._matrices) < _MIN_MATRICES:
            return Quiet.UNMEASURED
        return self._compare(sample, gradients, self._weights, self._updates)

    def _compare(
        self, sample: Sample, gradients: array[float], weights: array[float], updates: array[float]
    ) -> Verdict | Quiet:
        size = min(len(gradients), len(weights), len(updates))
        known = [i for i in self._matrices if i < size and weights[i] > 0.0 and math.isfinite(gradients[i] + updates[i])]
        third = len(known) // 3
        if third * 3 < _MIN_MATRICES - 2:
            return Quiet.UNMEASURED
        first, last = known[:third], known[-third:]
        front = median(gradients[i] / weights[i] for i in first)
        back = median(gradients[i] / weights[i] for i in last)
        moved = median(updates[i] / weights[i] for i in first)
        if back <= 0.0:
            return Quiet.FINE
        ratio = front / back
        if ratio >= self.thresholds.profile_ratio or moved >= self.thresholds.update_ratio:
            return Quiet.FINE
        layer = sample.names.name(first[0])
        summary = (
            f"The first {third} weight matrices get {ratio:.2g} of the relative gradient of the last {third} at step"
            f" {sample.number}, and move by {moved:.2g} of their norm a step."
        )
        return Verdict(ratio, self.thresholds.profile_ratio, summary, layer)
