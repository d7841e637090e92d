"""Steps take much longer than they did.

## What it means

Something has slowed the run down for good: clocks throttled for heat, another job on the same GPU or CPU, a data loader whose
cache is full, growing logs or lists in the loop, a kernel that is recompiled for each new shape.

## The test

The usual step time is the median of 200 steps after the first 50, and its robust deviation. Regressed is a median of the
last 50 steps above `info_ratio` times the usual one and 2 deviations, for `steps` steps running that took `seconds` seconds
or more. From `warning_ratio` on, and when it has lasted `warning_seconds` seconds, it is a warning; before, and below, it
is info. Single slow steps (validation, checkpoints, the start of an epoch) do not move a median. A step that the loader
delays is left to `data_starvation`: data wait is taken out of the step time. The usual time is learned anew when the
optimizer is set up anew.

## What to do

1. See which phase has grown (`train_phase_seconds_total`, `gpuwatch status`).
2. Look at the GPU's clocks, temperature and throttle reasons, and for other processes on the GPU and the host.
3. Look for work in the loop that grows with the step: lists that are kept, logging, plots.

## When it is wrong

Curricula with longer sequences, progressive growing and thawed layers make steps longer on purpose.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.baseline import Baseline
from gpuwatch.detectors.rule import Positive, Quiet, Rule, Steps, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample

_SETTLE_STEPS = 50
_USUAL_STEPS = 200
_RECENT_STEPS = 50
#: Of single steps; the median of 50 that is compared with them is known seven times better.
_SIGMAS = 2.0
#: The median of the recent steps need not be taken anew at each step.
_EVERY = 10


class Limits(Thresholds, frozen=True):
    info_ratio: Annotated[Positive, Meta(description="step time over the usual one that is worth a note")] = 1.5
    warning_ratio: Annotated[Positive, Meta(description="step time over the usual one that is a warning")] = 2.0
    steps: Annotated[Steps, Meta(description="steps running")] = 100
    seconds: Annotated[Positive, Meta(description="time that these steps took, at least")] = 5.0
    warning_seconds: Annotated[Positive, Meta(description="how long it has lasted when it is a warning")] = 60.0


class StepTimeRegression(Rule[Limits]):
    name = "step_time_regression"
    severity = "info"
    statistic = "median step time without data wait, of 50 steps, over the usual one (ratio)"
    action = "See which phase has grown; look at the GPU's clocks, at other processes, and for work that grows with the step."
    thresholds_type = Limits
    quiet_steps = 5  # looks, at every 10th step

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._begin()

    def _begin(self) -> None:
        self._seen = 0
        self._usual = Baseline(window=_USUAL_STEPS, warmup=_USUAL_STEPS + 1)  # never ready: nothing is winsorised
        self._recent: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._slow_since: tuple[int, int] | None = None  # step, CLOCK_MONOTONIC ns

    def judge(self, sample: Sample) -> Verdict | Quiet:
        if sample.new_regime:
            self._begin()
        took = sample.value("step_seconds")
        if took is None or took <= 0.0:
            return Quiet.UNMEASURED
        took = max(took - (sample.value("data_seconds") or 0.0), 0.0)
        self._seen += 1
        if self._seen <= _SETTLE_STEPS:
            return Quiet.UNMEASURED
        if self._seen <= _SETTLE_STEPS + _USUAL_STEPS:
            self._usual.add(took)
            return Quiet.UNMEASURED
        self._recent.append(took)
        if self._seen % _EVERY or len(self._recent) < _RECENT_STEPS:
            return Quiet.UNMEASURED
        return self._compare(sample, median(self._recent), self._usual.median)

    def _compare(self, sample: Sample, now: float, usual: float) -> Verdict | Quiet:
        limits = self.thresholds
        slow = now > limits.info_ratio * usual and now > usual + _SIGMAS * self._usual.sigma
        if not slow or usual <= 0.0:
            self._slow_since = None
            return Quiet.FINE
        first_step, since_ns = self._slow_since = self._slow_since or (sample.number, sample.step.monotonic_ns)
        lasted_seconds = (sample.step.monotonic_ns - since_ns) / 1e9
        if sample.number - first_step < limits.steps or lasted_seconds < limits.seconds:
            return Quiet.FINE
        ratio = now / usual
        severity = "warning" if ratio > limits.warning_ratio and lasted_seconds > limits.warning_seconds else "info"
        threshold = limits.warning_ratio if severity == "warning" else limits.info_ratio
        summary = f"A step takes {now:.3g} s without its data wait, {ratio:.2g} times what is usual, since step {first_step}."
        return Verdict(ratio, threshold, summary, severity=severity, first_step=first_step)
