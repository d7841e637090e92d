"""A layer gets no gradient at all, or next to none of its entries do.

## What it means

Units that never fire pass no gradient on: a ReLU whose inputs have all become negative, a saturated gate, a branch that is
multiplied by zero. The weights that feed such units stay as they are for ever, and the model is smaller than it looks.

## The test

Weight matrices only (no biases, gains or embeddings). A step is bad when a matrix has a gradient that is zero in every entry
while other matrices of the same optimizer have one that is not, or, for all but the first matrix, when more than
`zero_ratio` of its gradient's entries are zero. It is looked at in every 5th applied step that carries layers, and opens when
the same matrix was bad in `looks` looks running. A frozen tensor has no gradient, which is not a gradient of zero.

## What to do

1. Lower the learning rate or clip: large steps are what usually kills ReLUs. LeakyReLU, GELU or SiLU recover by themselves.
2. Look at the bias of the layer before (a large negative one) and at its initialisation.
3. Where a branch is gated or masked, see that the gate opens.

## When it is wrong

Inputs that are mostly zero (bags of words, one-hot codes) give the first matrix a mostly zero gradient: that is why only a
gradient of nothing but zeros counts there. A deeper matrix behind a sparse code (mixtures of experts, top-k activations)
looks dead and is not: tensors with `expert` in their names are passed over, others can be excused with `zero_ratio = 1`.
"""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.matrices import matrices
from gpuwatch.detectors.rule import Quiet, Rule, Share, Steps, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample

_EVERY = 5
_EXPERT = re.compile(r"expert", re.IGNORECASE)


class Limits(Thresholds, frozen=True):
    zero_ratio: Annotated[Share, Meta(description="share of zero entries in a matrix's gradient")] = 0.9
    looks: Annotated[Steps, Meta(description="looks (at every 5th step) running")] = 10


class DeadLayer(Rule[Limits]):
    name = "dead_layer"
    severity = "warning"
    statistic = "share of the entries of a matrix's gradient that are zero (ratio)"
    action = "Lower the learning rate, use LeakyReLU or GELU before that layer, and look at its initialisation."
    thresholds_type = Limits
    quiet_steps = 5  # looks

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._seen = 0
        self._table_version = -1
        self._matrices: list[int] = []
        self._dead: dict[int, int] = {}  # matrix -> looks running at which it was dead

    def judge(self, sample: Sample) -> Verdict | Quiet:
        if not sample.has_layers or not sample.applied:
            return Quiet.UNMEASURED
        self._seen += 1
        if self._seen % _EVERY:
            return Quiet.UNMEASURED
        shares, norms = sample.column("gradient", "zero_ratio"), sample.gradient_norms
        if shares is None or norms is None:
            return Quiet.UNMEASURED
        if sample.names.version != self._table_version:
            self._table_version = sample.names.version
            self._matrices = [i for i in matrices(sample.names) if not _EXPERT.search(sample.names.name(i))]
            self._dead = {}
        alive = {optimizer for optimizer, first, end in _spans(sample) if any(norm > 0.0 for norm in norms[first:end])}
        dead = {}
        for place, index in enumerate(self._matrices):
            if index >= len(shares) or not shares[index] >= 0.0:
                continue
            nothing = shares[index] >= 1.0 and norms[index] == 0.0 and _optimizer_of(sample, index) in alive
            partly = place > 0 and 1.0 > shares[index] > self.thresholds.zero_ratio
            if nothing or partly:
                dead[index] = self._dead.get(index, 0) + 1
        self._dead = dead
        return self._verdict(sample, {i: shares[i] for i, looks in dead.items() if looks >= self.thresholds.looks})

    def _verdict(self, sample: Sample, dead: dict[int, float]) -> Verdict | Quiet:
        if not dead:
            return Quiet.FINE
        worst = max(dead, key=lambda index: (dead[index], index))
        layer = sample.names.name(worst)
        others = f", and {len(dead) - 1} other matrices," if len(dead) > 1 else ""
        what = "is zero in every entry" if dead[worst] >= 1.0 else f"is zero in {dead[worst]:.1%} of its entries"
        summary = f"The gradient of {layer}{others} {what} at step {sample.number}, as in the {self._span_text()} before."
        first_step = max(1, sample.number - _EVERY * self.thresholds.looks + 1)
        return Verdict(dead[worst], self.thresholds.zero_ratio, summary, layer, first_step=first_step)

    def _span_text(self) -> str:
        return f"{_EVERY * self.thresholds.looks} steps"


def _spans(sample: Sample) -> list[tuple[int, int, int]]:
    """(optimizer, first index, end) of each stretch of gradients."""
    return [(r.optimizer, r.first, r.first + r.count) for r in sample.step.tensors if r.family == "gradient"]


def _optimizer_of(sample: Sample, index: int) -> int:
    return next((optimizer for optimizer, first, end in _spans(sample) if first <= index < end), -1)
