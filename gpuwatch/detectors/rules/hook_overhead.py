"""gpuwatch itself takes more of the step than it should.

## What it means

The hooks time themselves on the training thread. They have a budget (`hooks.overhead_budget`, 1 % by default) and thin
their dearest statistics by themselves to keep it; what remains is a fixed cost for each step, which only very short steps
(below about 10 ms) notice.

## The test

The hooks' time over the step time, both summed over the last 100 steps: above `info_ratio` it is info, above
`warning_ratio` a warning; it is over below four fifths of `info_ratio`. The first 20 steps, which set things up, do not
count.

## What to do

Record fewer steps (`gpuwatch run --every 10`), or switch histograms off (`hooks.histograms = false`).

## When it is wrong

With steps of a few milliseconds the fixed cost is a visible share and still less than a millisecond. While the machine is
overloaded, time that the hooks were not running is counted as theirs.
"""

from __future__ import annotations

from collections import deque
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.rule import Quiet, Rule, Share, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample

_STEPS = 100
_SETUP_STEPS = 20
_OVER_BELOW = 0.8  # of info_ratio: a share that wavers about the threshold opened fifteen findings in 2,400 steps


class Limits(Thresholds, frozen=True):
    info_ratio: Annotated[Share, Meta(description="share of the step time that is worth a note")] = 0.05
    warning_ratio: Annotated[Share, Meta(description="share of the step time that is a warning")] = 0.10


class HookOverhead(Rule[Limits]):
    name = "hook_overhead"
    severity = "info"
    statistic = "time of gpuwatch's hooks over step time, last 100 steps (ratio)"
    action = "Record fewer steps (--every 10) or switch histograms off."
    thresholds_type = Limits

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._seen = 0
        self._times: deque[tuple[float, float]] = deque(maxlen=_STEPS)
        self._hooks_seconds = 0.0
        self._steps_seconds = 0.0
        self._speaks = False

    def judge(self, sample: Sample) -> Verdict | Quiet:
        hook, step = sample.value("hook_seconds"), sample.value("step_seconds")
        if hook is None or step is None or step <= 0.0 or hook < 0.0:
            return Quiet.UNMEASURED
        self._seen += 1
        if self._seen <= _SETUP_STEPS:
            return Quiet.UNMEASURED
        if len(self._times) == _STEPS:
            old_hook, old_step = self._times[0]
            self._hooks_seconds -= old_hook
            self._steps_seconds -= old_step
        self._times.append((hook, step))
        self._hooks_seconds += hook
        self._steps_seconds += step
        if len(self._times) < _STEPS:
            return Quiet.UNMEASURED
        ratio = self._hooks_seconds / self._steps_seconds if self._steps_seconds > 0.0 else 0.0
        limits = self.thresholds
        self._speaks = ratio > limits.info_ratio * (_OVER_BELOW if self._speaks else 1.0)
        if not self._speaks:
            return Quiet.FINE
        severity = "warning" if ratio > limits.warning_ratio else "info"
        threshold = limits.warning_ratio if severity == "warning" else limits.info_ratio
        summary = f"gpuwatch's hooks take {ratio:.1%} of the step time at step {sample.number}."
        return Verdict(ratio, threshold, summary, severity=severity)
