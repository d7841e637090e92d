"""The training loop waits for its data.

## What it means

A large share of each step is spent in the DataLoader's `next`, while the device idles. The step cannot become faster than
its data, whatever is done to the model.

## The test

The mean of data wait over step time, over the last 50 steps, each step counted with at most 1. Above `info_ratio` for 20
steps it is info, above `warning_ratio` a warning. The first 10 steps, in which workers start, do not count; a single long
wait at the start of an epoch is 1 step of 50.

## What to do

1. `num_workers` > 0, near the number of CPU cores for each GPU; `persistent_workers=True`, `pin_memory=True`, a larger
   `prefetch_factor`.
2. Move decoding and augmentation to the GPU, or do them once and store the result.
3. Read larger, fewer files; keep the set on a local disk. Look at the host's CPU and at `train_process_read_bytes_total`.

## When it is wrong

Only torch's DataLoader has an entrance that can be watched: other loaders count as `other` time. Reading is asynchronous on
the GPU, so with a queue of kernels a wait on the host may cost nothing; look at `gpu_idle` too.
"""

from __future__ import annotations

from collections import deque
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.rule import Quiet, Rule, Share, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample

_STEPS = 50
_STARTUP_STEPS = 10


class Limits(Thresholds, frozen=True):
    info_ratio: Annotated[Share, Meta(description="data wait over step time that is worth a note")] = 0.15
    warning_ratio: Annotated[Share, Meta(description="data wait over step time that is a warning")] = 0.30


class DataStarvation(Rule[Limits]):
    name = "data_starvation"
    severity = "info"
    statistic = "data wait over step time, mean of 50 steps (ratio)"
    action = "Give the DataLoader more workers, persistent and prefetching; move decoding off the training process."
    thresholds_type = Limits
    open_after = 20
    open_within = 20

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._seen = 0
        self._ratios: deque[float] = deque(maxlen=_STEPS)

    def judge(self, sample: Sample) -> Verdict | Quiet:
        wait, step = sample.value("data_seconds"), sample.value("step_seconds")
        if wait is None or step is None or step <= 0.0:
            return Quiet.UNMEASURED
        self._seen += 1
        if self._seen <= _STARTUP_STEPS:
            return Quiet.UNMEASURED
        self._ratios.append(min(max(wait / step, 0.0), 1.0))
        if len(self._ratios) < _STEPS:
            return Quiet.UNMEASURED
        ratio = sum(self._ratios) / _STEPS
        limits = self.thresholds
        if ratio <= limits.info_ratio:
            return Quiet.FINE
        severity = "warning" if ratio > limits.warning_ratio else "info"
        threshold = limits.warning_ratio if severity == "warning" else limits.info_ratio
        summary = f"The loop waits for data during {ratio:.0%} of its time (the 50 steps up to {sample.number})."
        return Verdict(ratio, threshold, summary, severity=severity)
