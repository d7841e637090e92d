"""The loss has stopped falling.

## What it means

Either the run is done, and every further step costs money for nothing, or it never got going: a learning rate that is far
too small or too large, labels that do not belong to their inputs, a network that outputs a constant. The summary says which,
by comparing with the losses of the first 20 steps. It is never more than info, because a plateau is how training ends well.

## The test

Over the last `window_steps` steps, or the last half of the run when that is longer, the losses are put together into 25
means without their extremes, and the Theil-Sen slope of these (the median of all pairwise slopes) is taken with its 95 %
confidence interval. A plateau is a whole interval within `ratio` of the loss's level, per window, with no two means further
apart than half that level. A loss too noisy for that
is not judged. It is looked at once in 50 steps, restarts with each new regime of the optimizer, and needs a positive loss;
it is off for GANs.

## What to do

1. When it is at the level of the first losses: overfit one batch on purpose. If that fails, look for a fault in the loop
   (targets, the last activation, frozen tensors); if it works, try learning rates with `gpuwatch lr-find`.
2. When it has come down: lower the learning rate (`ReduceLROnPlateau`), or stop and look at the validation score.

## When it is wrong

Grokking and curricula stay flat for long and go on later. The loss may be flat while what counts (a validation score, a
reward) still improves.
"""

from __future__ import annotations

import itertools
import math
from array import array
from statistics import median
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.rule import Positive, Quiet, Rule, Steps, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample

_BLOCKS = 25
_LOOK_EVERY = 50
_FIRST_LOSSES = 20
_RUN_SHARE = 2
#: Losses kept: from 80,000 steps on the window grows no more.
_KEPT = 40_000
#: Half the width of the 95 % interval, in ranks of the sorted pairwise slopes: 1.96 times sigma of Kendall's S, over 2.
_HALF_RANKS = 0.5 * 1.96 * math.sqrt(_BLOCKS * (_BLOCKS - 1) * (2 * _BLOCKS + 5) / 18)
_STUCK_RATIO = 0.95
_MOVED_RATIO = 0.5


class Limits(Thresholds, frozen=True):
    ratio: Annotated[Positive, Meta(description="change of the loss in a window, of its level")] = 0.05
    window_steps: Annotated[Steps, Meta(description="steps that are looked at, at least")] = 500


class LossPlateau(Rule[Limits]):
    name = "loss_plateau"
    severity = "info"
    statistic = "change of the loss over the window, of its level (ratio)"
    action = "Stop or lower the learning rate if the run is done; if the loss never came down, look for a fault in the loop."
    thresholds_type = Limits
    open_after = 2
    open_within = 2
    quiet_steps = 4  # looks

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._losses = array("d")
        self._seen = 0
        self._start = 0.0

    def judge(self, sample: Sample) -> Verdict | Quiet:
        if sample.new_regime:
            self._losses = array("d")
        loss = sample.value("loss")
        if loss is None or loss <= 0.0 or not sample.applied or len(sample.step.losses) > 1:
            return Quiet.UNMEASURED
        self._seen += 1
        if self._seen <= _FIRST_LOSSES:
            self._start += (loss - self._start) / self._seen
        self._losses.append(loss)
        if len(self._losses) >= 2 * _KEPT:
            del self._losses[:_KEPT]
        if self._seen % _LOOK_EVERY:
            return Quiet.UNMEASURED
        window = min(_KEPT, max(self.thresholds.window_steps, self._seen // _RUN_SHARE))
        if len(self._losses) < window:
            return Quiet.UNMEASURED
        return self._look(sample, self._losses[-window:])

    def _look(self, sample: Sample, losses: array[float]) -> Verdict | Quiet:
        edges = [len(losses) * i // _BLOCKS for i in range(_BLOCKS + 1)]
        points = [_trimmed_mean(losses[a:b]) for a, b in itertools.pairwise(edges)]
        level = median(points)
        if max(points) - min(points) > _MOVED_RATIO * level:  # a cliff in few blocks moves no median of slopes
            return Quiet.FINE
        slopes = sorted((points[j] - points[i]) / (j - i) for i in range(_BLOCKS) for j in range(i + 1, _BLOCKS))
        middle = len(slopes) / 2
        low, high = slopes[int(middle - _HALF_RANKS)], slopes[min(len(slopes) - 1, math.ceil(middle + _HALF_RANKS))]
        changes = [slope * (_BLOCKS - 1) / level for slope in (low, median(slopes), high)]
        threshold = self.thresholds.ratio
        if max(map(abs, changes)) > threshold:
            return Quiet.FINE
        stuck = level > _STUCK_RATIO * self._start
        where = "where it began" if stuck else f"at {level / self._start:.2g} of where it began"
        summary = (
            f"The loss has stayed at {level:.4g}, {where}, for {len(losses)} steps up to step {sample.number}:"
            f" it changed by {changes[1]:+.2%}."
        )
        return Verdict(changes[1], threshold, summary, first_step=max(1, sample.number - len(losses) + 1))


def _trimmed_mean(losses: array[float]) -> float:
    """Without the lowest and highest tenth: as tight as a mean, and a single spike does not move it."""
    cut = len(losses) // 10
    kept = sorted(losses)[cut : len(losses) - cut]
    return sum(kept) / len(kept)
