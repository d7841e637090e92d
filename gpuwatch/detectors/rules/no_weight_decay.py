"""The weights grow, and nothing holds them back.

## What it means

No parameter group has a weight decay, and the norm of the weights has grown steadily. That is not wrong by itself; a little
decay (0.01 with AdamW, 1e-4 with SGD) is what most recipes use, it usually helps validation, and large weights make float16
overflow sooner.

## The test

Weight decay is 0 in every group of every optimizer, `steps` steps have been made, and the norm of all weights is more than
`growth_ratio` times what it was when it was first measured. Told once, as info.

## What to do

Set `weight_decay` (AdamW rather than Adam: there it is not scaled by the gradient's history), for the matrices and not for
biases and gains. Look at the validation score with and without it (`gpuwatch compare`).

## When it is wrong

Runs that regularise in another way (early stopping, dropout, data augmentation, weight norm, an explicit penalty in the loss)
need none. Weights that begin near zero (adapters, new heads) grow as they should.
"""

from __future__ import annotations

import math
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.rule import Positive, Quiet, Rule, Steps, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample


class Limits(Thresholds, frozen=True):
    growth_ratio: Annotated[Positive, Meta(description="weight norm over the first one measured")] = 1.5
    steps: Annotated[Steps, Meta(description="steps before anything is judged")] = 200


class NoWeightDecay(Rule[Limits]):
    name = "no_weight_decay"
    severity = "info"
    statistic = "weight norm over the first one measured (ratio)"
    action = "Set weight_decay (0.01 with AdamW, 1e-4 with SGD) for the weight matrices, and compare validation scores."
    thresholds_type = Limits

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._seen = 0
        self._first_norm = 0.0

    def judge(self, sample: Sample) -> Verdict | Quiet:
        self._seen += 1
        norm = sample.value("weight_norm")
        if norm is None or norm <= 0.0:
            return Quiet.UNMEASURED
        if self._first_norm <= 0.0:
            self._first_norm = norm
        decays = [decay for groups in sample.step.groups.values() for _, decay in groups]
        if not decays or self._seen < self.thresholds.steps:
            return Quiet.UNMEASURED
        ratio = norm / self._first_norm
        if any(decay > 0.0 for decay in decays) or all(map(math.isnan, decays)) or ratio <= self.thresholds.growth_ratio:
            return Quiet.FINE
        summary = (
            f"The weights' norm is {ratio:.2f} times what it was at first, at step {sample.number}, and no group"
            " has weight decay."
        )
        return Verdict(ratio, self.thresholds.growth_ratio, summary)
