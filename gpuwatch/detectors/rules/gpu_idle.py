"""The run holds a GPU and hardly uses it.

## What it means

Steps are made, but the GPU waits for the host most of the time: data loading, Python between small kernels, transfers,
logging. A faster GPU would change nothing; more parallel work on the host, or larger batches, would.

## The test

The mean utilization of every GPU that the run is on, over `seconds` seconds in which steps were made, is below `ratio`, for
the busiest of them. The first 2 minutes of a run are not judged. Not told for MIG devices, which do not say how busy they
are.

## What to do

1. See which phase of the step is long (`gpuwatch status`); data: more workers; forward: fewer, larger kernels (larger
   batches, `torch.compile`, CUDA graphs).
2. Run it on a smaller GPU, on a MIG slice, or beside another job.

## When it is wrong

Runs that alternate with a simulator or an environment (reinforcement learning) are idle by nature. Utilization says that any
kernel ran, so the opposite, a busy GPU that does little, is not seen here.
"""

from __future__ import annotations

from collections import deque
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.moment import Moment
from gpuwatch.detectors.rule import MomentRule, Positive, Quiet, Share, Thresholds, Verdict

_STARTUP_SECONDS = 120.0
_LATEST_STEP_SECONDS = 60.0


class Limits(Thresholds, frozen=True):
    ratio: Annotated[Share, Meta(description="mean utilization of the busiest GPU of the run")] = 0.15
    seconds: Annotated[Positive, Meta(description="time over which it is averaged")] = 300.0


class GpuIdle(MomentRule[Limits]):
    name = "gpu_idle"
    severity = "warning"
    statistic = "mean utilization of the busiest GPU of the run (ratio)"
    action = "Find the phase that waits for the host (gpuwatch status); larger batches, more loader workers, torch.compile."
    thresholds_type = Limits

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._began_ns = 0
        self._past: deque[tuple[int, float]] = deque()  # monotonic ns, utilization of the busiest
        self._sum = 0.0

    def judge(self, moment: Moment) -> Verdict | Quiet:
        self._began_ns = self._began_ns or moment.monotonic_ns
        told = [busy for device in moment.devices if (busy := device.value("utilization_ratio")) is not None]
        recent = moment.step_age_seconds is not None and moment.step_age_seconds < _LATEST_STEP_SECONDS
        if not told or not recent or moment.monotonic_ns - self._began_ns < _STARTUP_SECONDS * 1e9:
            self._past.clear()
            self._sum = 0.0
            return Quiet.UNMEASURED
        self._past.append((moment.monotonic_ns, max(told)))
        self._sum += max(told)
        limits = self.thresholds
        if moment.monotonic_ns - self._past[0][0] < limits.seconds * 1e9:
            return Quiet.UNMEASURED
        while moment.monotonic_ns - self._past[0][0] > limits.seconds * 1e9:
            self._sum -= self._past.popleft()[1]
        mean = max(0.0, self._sum / len(self._past))
        if mean >= limits.ratio:
            return Quiet.FINE
        gpus = ", ".join(device.label for device in moment.devices)
        summary = f"GPU {gpus} was busy {mean:.0%} of the last {limits.seconds:.0f} s, although steps were made."
        return Verdict(mean, limits.ratio, summary)
