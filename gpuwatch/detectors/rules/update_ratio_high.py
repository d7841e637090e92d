"""An optimizer step changes the weights by a large part of themselves.

## What it means

The L2 norm of the update is compared with that of the weights. Around 1/1000 is healthy; a tenth means that ten steps could
replace the model. The learning rate is too high, for all or for one group of parameters, or weight decay is out of scale.

## The test

update norm / weight norm of all weights together is above `ratio`, in 3 measured steps running, or once above
`critical_ratio`, which is critical. The ratio is sampled (see the overhead budget), so 3 measurements may span more steps.
Weights that start near zero make the ratio large without harm, so in the first `warmup_steps` steps only one that is above
`first_ratio` is bad, and critical, and only when the weights had a root mean square of 0.005 or more. The `layer` is the
one whose weights change most, where layers are measured.

## What to do

Divide the learning rate by the excess over 0.001 (it is in the summary), or clip. With several parameter groups, look at
`update/LAYER/ratio` in TensorBoard for the group at fault.

## When it is wrong

Weights that begin at or near zero (adapters, a new head as the only trained part) change by much of themselves for longer
than the warm-up. Optimizers that average weights (lookahead, SWA) jump on purpose.
"""

from __future__ import annotations

import math
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.rule import Positive, Quiet, Rule, Steps, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample

_HEALTHY_RATIO = 1e-3
#: Default initialisations lie above this up to layers 8,000 wide; what is meant to begin at nought lies below.
_LEAST_RMS = 0.005


class Limits(Thresholds, frozen=True):
    ratio: Annotated[Positive, Meta(description="update norm over weight norm")] = 0.1
    critical_ratio: Annotated[Positive, Meta(description="once above this is enough, and critical")] = 0.5
    first_ratio: Annotated[Positive, Meta(description="in the first steps: once above this is critical")] = 3.0
    warmup_steps: Annotated[Steps, Meta(description="first steps, in which only `first_ratio` counts")] = 20


class UpdateRatioHigh(Rule[Limits]):
    name = "update_ratio_high"
    severity = "warning"
    statistic = "update norm over weight norm (ratio)"
    action = "Lower the learning rate until the ratio is near 0.001; look at update/LAYER/ratio for the group at fault."
    thresholds_type = Limits
    open_after = 3
    open_within = 3

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._steps = 0

    def judge(self, sample: Sample) -> Verdict | Quiet:
        self._steps += 1
        ratio = sample.value("update_ratio")
        if ratio is None or not sample.applied or (sample.value("closure_calls") or 0.0) > 1.0:
            return Quiet.UNMEASURED  # LBFGS tries several steps in one, and takes long ones where the loss lets it
        first = self._steps <= self.thresholds.warmup_steps
        if first and (ratio <= self.thresholds.first_ratio or not _weights_matter(sample)):
            return Quiet.UNMEASURED
        if ratio <= self.thresholds.ratio:
            return Quiet.FINE
        layer = _fastest_layer(sample)
        where = f", most of all {layer}" if layer else ""
        summary = (
            f"One step changes the weights by {ratio:.2g} of their norm at step {sample.number}, {ratio / _HEALTHY_RATIO:.3g}"
            f" times what is usual{where}{sample.cause}."
        )
        critical_ratio = self.thresholds.first_ratio if first else self.thresholds.critical_ratio
        if ratio > critical_ratio:
            return Verdict(ratio, critical_ratio, summary, layer, "critical", certain=True)
        return Verdict(ratio, self.thresholds.ratio, summary, layer)


def _weights_matter(sample: Sample) -> bool:
    """The weights before the update were no zeros that are only beginning to grow."""
    norm, count = sample.value("weight_norm"), sum(sample.names.numels)
    return norm is not None and count > 0 and norm >= _LEAST_RMS * math.sqrt(count)


def _fastest_layer(sample: Sample) -> str:
    updates, weights = sample.column("update", "norm"), sample.column("weight", "norm")
    if updates is None or weights is None:
        return ""
    best, layer = 0.0, ""
    for index, (update, weight) in enumerate(zip(updates, weights, strict=False)):
        # Biases and gains start at zero or hold few numbers: their ratios are large and mean nothing.
        if weight > 0.0 and math.isfinite(update) and update / weight > best and not sample.names.name(index).endswith("bias"):
            best, layer = update / weight, sample.names.name(index)
    return layer
