"""The loss keeps rising above what it had reached.

## What it means

The run is losing what it has learned: the learning rate is too high, the data has changed, labels no longer fit their
inputs, or weights were damaged by an earlier spike. Left alone it seldom comes back.

## The test

Any of these is enough.

* A shift: in `shift_steps` of 5 steps the loss lies more than `sigmas` robust standard deviations, and its logarithm more
  than `log_sigmas`, above the median of the last 128 steps, and the loss more than `ratio` times that.
* A drift: the median of the last 30 losses is more than `drift_ratio` above the median of the 200 that ended 50 steps
  before them, and 2 robust standard deviations of these, for 20 steps running.

* A loss of everything: 9 of 10 losses lie above what the loss was in the first steps of the run, although the median of the
  last 128 had come down to less than half of that.

It is critical when the median of the last 30 losses, or 9 of the last 10, are above what the loss was in the first 5 steps:
all that had been learned is lost. It needs a positive loss, and is off for GANs. Rises below 1 % of the first losses, and
those that stay below 5 % of them, do not count.

## What to do

1. Lower the learning rate by 3 to 10 times and return to the last checkpoint before `first_step`.
2. See whether something changed at `first_step`: a new epoch or shard of data, a step of the schedule, thawed layers.
3. Check that inputs and labels still belong together (a shuffled index, another collate function).

## When it is wrong

A curriculum that gets harder, a loss term that is switched on, or thawed layers raise the loss on purpose. Rewards and
adversarial losses may rise for good reasons; losses of GANs with two optimizers are not judged, those of others may be.
"""

from __future__ import annotations

from array import array
from collections import deque
from itertools import islice
from statistics import median
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.loss_level import Rise
from gpuwatch.detectors.rule import Positive, Quiet, Rule, Steps, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample

_RECENT, _GAP, _BEFORE = 30, 50, 200
_DRIFT_STEPS = 20
#: Single losses of small batches lie above the first ones often enough; nine of ten do not.
_LOST_STEPS, _LOST_WITHIN = 9, 10
#: The medians of the drift test need not be taken anew at each step.
_DRIFT_EVERY = 5
_SIGMA_OVER_MAD = 1.4826


class Limits(Thresholds, frozen=True):
    sigmas: Annotated[Positive, Meta(description="shift: robust standard deviations above the median of 128 steps")] = 5.0
    log_sigmas: Annotated[Positive, Meta(description="shift: the same of log(loss)")] = 3.0
    ratio: Annotated[Positive, Meta(description="shift: times that median")] = 1.15
    shift_steps: Annotated[Steps, Meta(description="shift: so many of 5 steps")] = 3
    drift_ratio: Annotated[Positive, Meta(description="drift: rise of the median of 30, as a share")] = 0.15


class LossDiverging(Rule[Limits]):
    name = "loss_diverging"
    severity = "warning"
    statistic = "loss over its level before (ratio)"
    action = "Return to a checkpoint from before first_step with a lower learning rate; check what changed in the data there."
    thresholds_type = Limits
    quiet_steps = 100  # a slow rule comes to rest slowly: its medians reach back 280 steps

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._high: deque[bool] = deque(maxlen=5)
        self._lost: deque[bool] = deque(maxlen=_LOST_WITHIN)
        self._losses: deque[float] = deque(maxlen=_RECENT + _GAP + _BEFORE)
        self._judged = 0
        self._drifting = 0  # steps
        self._drift = 0.0  # ratio of the medians

    def judge(self, sample: Sample) -> Verdict | Quiet:
        if sample.new_regime:
            self._losses.clear()
            self._drifting = 0
        rise = sample.rise
        if rise is None:
            return Quiet.UNMEASURED
        self._losses.append(rise.loss)
        self._judged += 1
        if self._judged % _DRIFT_EVERY == 0:
            self._measure_drift(rise.start)
        limits = self.thresholds
        far = rise.sigmas > limits.sigmas and rise.log_sigmas > limits.log_sigmas
        self._high.append(far and rise.matters and rise.ratio > limits.ratio)
        self._lost.append(rise.median < 0.5 * rise.start < 0.5 * rise.loss)
        shifted = sum(self._high) >= limits.shift_steps
        lost = sum(self._lost) >= _LOST_STEPS
        if not shifted and not lost and self._drifting < _DRIFT_STEPS:
            return Quiet.FINE
        return self._verdict(sample, rise, shifted=shifted, lost=lost)

    def _measure_drift(self, start: float) -> None:
        losses = self._losses
        if len(losses) < _RECENT + _GAP + _BEFORE:
            return
        before = array("d", islice(losses, _BEFORE))
        level = median(before)
        spread = _SIGMA_OVER_MAD * median(abs(loss - level) for loss in before)
        now = median(islice(losses, _BEFORE + _GAP, None))
        self._drift = now / level
        rising = now > level * (1.0 + self.thresholds.drift_ratio) and now > level + 2.0 * spread
        matters = now - level > 0.01 * start
        self._drifting = self._drifting + _DRIFT_EVERY if rising and matters else 0

    def _verdict(self, sample: Sample, rise: Rise, *, shifted: bool, lost: bool) -> Verdict:
        recent = median(islice(self._losses, max(0, len(self._losses) - _RECENT), None))
        at_once = shifted or lost
        lost = lost or recent > rise.start
        value = rise.ratio if at_once else self._drift
        threshold = self.thresholds.ratio if at_once else 1.0 + self.thresholds.drift_ratio
        beyond = ", above where the run began" if lost else ""
        summary = f"The loss is rising: {rise.loss:.4g} at step {sample.number}, {value:.3g} times its level before{beyond}"
        return Verdict(
            value,
            threshold,
            f"{summary}{sample.cause}.",
            severity="critical" if lost else "warning",
            first_step=0 if at_once else max(1, sample.number - self._drifting - _RECENT),
        )
