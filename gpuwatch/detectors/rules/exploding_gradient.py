"""Gradients are far larger than they have been.

## What it means

The global gradient norm has left its usual range upwards. One large step can undo thousands of good ones, and with Adam it
also inflates the second moment for a long time afterwards. Norms are compared as logarithms, because healthy ones are
skewed to the right: a rule of "mean + 3 standard deviations" on 30 healthy runs raised 386 false episodes, this one 8.

The norm is the one before clipping and without the loss scale, so this fires although clipping may have caught the step.
The `layer` is the one that was first to leave its own range, and there by most.

## The test

z is how many robust standard deviations log(norm) lies above its median over the last 128 applied steps (MAD, sigma at
least 0.1); nothing is judged in the first 50 steps, nor in the 50 after the optimizer was set up anew or its schedule began
again. A learning rate that jumps to a height never seen before does not restart the baseline. Steps whose loss is below 5 %
of the first losses are fine, unless the norm is 10 times the largest of the first 5 steps: a run that has come down to
nothing is thrown up by factors of a thousand, and returns.

* A step is bad with z > `sigmas` and norm > `ratio` times the median, or, the slower way, when 3 of 5 steps had
  z > `sustained_sigmas` and norm > `sustained_ratio` times the median.
* Severity: a single spike below `warning_ratio` is only info, because healthy runs have them; a larger or a sustained one is
  a warning; one beyond `critical_ratio`, or the first way in 3 of 5 steps at `warning_ratio`, is critical.

## What to do

1. Clip: `torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)` between backward and step; the median that is reported
   here is a good place to start from.
2. Lower the learning rate, or warm it up for longer when this happens early.
3. For one layer only: check its initialisation, its normalisation, and the batch's outliers.

## When it is wrong

A batch of unusual data (a long sequence, a rare class) gives a single spike without harm, which is info. Policy gradients
and clipped recurrent nets have heavy tails by nature: after half a window they count as normal. A new phase of training
that the optimizer's settings do not show (another loss term, another data set) looks like an explosion until then.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from statistics import median
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.baseline import Baseline
from gpuwatch.detectors.learned import Learned
from gpuwatch.detectors.rule import Positive, Quiet, Rule, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample

_SIGMA_FLOOR = 0.1  # of log(norm): healthy norms are within 10 % of each other only by luck
_SUSTAINED_STEPS, _SUSTAINED_WITHIN = 3, 5
#: Norms of the first steps are what an untrained model has; this many times as much is too much for a trained one.
_FIRST_NORMS, _BEYOND_FIRST = 5, 10.0
#: Steps whose layers are kept to tell, once the norm explodes, where it began.
_LAYER_STEPS = 32


class Limits(Thresholds, frozen=True):
    sigmas: Annotated[Positive, Meta(description="at once: robust standard deviations of log(norm)")] = 6.0
    ratio: Annotated[Positive, Meta(description="at once: times the median norm")] = 3.0
    sustained_sigmas: Annotated[Positive, Meta(description="in 3 of 5 steps: standard deviations")] = 4.0
    sustained_ratio: Annotated[Positive, Meta(description="in 3 of 5 steps: times the median norm")] = 1.5
    warning_ratio: Annotated[Positive, Meta(description="a single spike below this is only info")] = 10.0
    critical_ratio: Annotated[Positive, Meta(description="beyond this it is critical at once")] = 100.0


class ExplodingGradient(Rule[Limits]):
    name = "exploding_gradient"
    severity = "warning"
    statistic = "gradient norm over its median of 128 steps (ratio)"
    action = "Clip gradients near the reported median norm, and lower the learning rate or warm it up for longer."
    thresholds_type = Limits

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._baseline = Baseline(floor=_SIGMA_FLOOR)
        self._learned = Learned()
        self._first_norms: list[float] = []
        self._high: deque[int] = deque(maxlen=_SUSTAINED_WITHIN)  # the step, where it was high, else 0
        self._huge: deque[bool] = deque(maxlen=_SUSTAINED_WITHIN)
        self._layers: deque[tuple[int, array[float]]] = deque(maxlen=_LAYER_STEPS)
        self._began: tuple[int, str] = (0, "")  # the present episode: its first step and layer
        self._bad_step = 0  # the last

    def judge(self, sample: Sample) -> Verdict | Quiet:
        if sample.new_regime:
            self._baseline.restart()
            self._layers.clear()
        norm = sample.value("grad_norm")
        loss = self._learned.observe(sample)
        if norm is None or norm <= 0.0 or not sample.applied:
            return Quiet.UNMEASURED
        if len(self._first_norms) < _FIRST_NORMS:
            self._first_norms.append(norm)
        if sample.gradient_norms is not None:
            self._layers.append((sample.number, sample.gradient_norms))
        level = math.log(norm)
        ready = self._baseline.ready
        sigmas = self._baseline.score(level)
        usual = math.exp(self._baseline.median) if ready else norm
        self._baseline.add(level)
        if not ready:
            return Quiet.UNMEASURED
        if self._learned.has_nearly_all(loss) and norm <= _BEYOND_FIRST * max(self._first_norms):
            return Quiet.FINE
        return self._verdict(sample, norm, norm / usual, sigmas)

    def _verdict(self, sample: Sample, norm: float, ratio: float, sigmas: float) -> Verdict | Quiet:
        limits = self.thresholds
        at_once = sigmas > limits.sigmas and ratio > limits.ratio
        is_high = sigmas > limits.sustained_sigmas and ratio > limits.sustained_ratio
        self._high.append(sample.number if is_high else 0)
        self._huge.append(at_once and ratio > limits.warning_ratio)
        high = [step for step in self._high if step]
        sustained = is_high and len(high) >= _SUSTAINED_STEPS
        if not at_once and not sustained:
            return Quiet.FINE
        severity = "warning" if sustained or ratio > limits.warning_ratio else "info"
        if ratio > limits.critical_ratio or sum(self._huge) >= _SUSTAINED_STEPS:
            severity = "critical"
        if sample.number - self._bad_step > self.quiet_steps:  # comparing all layers costs as much as ten steps
            first_step, layer = self._origin(sample)
            self._began = (first_step or min(high, default=sample.number), layer)
        self._bad_step = sample.number
        first_step, layer = self._began
        where = f", first in {layer}" if layer else ""
        summary = f"The gradient norm is {norm:.3g} at step {sample.number}, {ratio:.3g} times its median{where}{sample.cause}."
        threshold = limits.ratio if at_once else limits.sustained_ratio
        return Verdict(ratio, threshold, summary, layer, severity, first_step)

    def _origin(self, sample: Sample) -> tuple[int, str]:
        """Where it began, among the last 5 steps: the first step with a layer far above its own median; 0 when unknown."""
        if len(self._layers) <= _SUSTAINED_WITHIN or self._layers[-1][0] != sample.number:
            return 0, ""
        *before, last = self._layers
        usual = [median(_finite(column)) for column in zip(*(norms for _, norms in before), strict=False)]
        for step, norms in [*before[1 - _SUSTAINED_WITHIN :], last]:
            index, ratio = _largest_ratio(norms, usual)
            if ratio > self.thresholds.ratio:
                return step, sample.names.name(index)
        return 0, ""


def _finite(column: tuple[float, ...]) -> list[float]:
    return [norm for norm in column if math.isfinite(norm)] or [math.nan]


def _largest_ratio(norms: array[float], usual: list[float]) -> tuple[int, float]:
    ratios = [norm / level if level > 0.0 and norm >= 0.0 else 0.0 for norm, level in zip(norms, usual, strict=False)]
    best = max(range(len(ratios)), key=ratios.__getitem__, default=0)
    return best, ratios[best] if ratios else 0.0
