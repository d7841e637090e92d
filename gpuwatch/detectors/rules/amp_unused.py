"""The GPU has tensor cores, and the run does not use them.

## What it means

The run computes in float32 on the ordinary units, while the tensor cores, several times as fast, are idle. Mixed precision,
or TF32 for the matrix products, would use them.

## The test

Over `seconds` seconds in which steps were made, the tensor cores of a GPU that the run is on were active in less than
`ratio` of the cycles (GPM, on Hopper and newer, so that what has no tensor cores is never told), while its multiprocessors
were busy for more than `busy_ratio` of the time, and the hooks saw float32 without autocast.

## What to do

1. `torch.autocast("cuda", dtype=torch.bfloat16)` around the forward pass; `gpuwatch probe amp` measures what it would bring.
2. At the least `torch.set_float32_matmul_precision("high")`, which uses TF32.

## When it is wrong

Models without matrix products or convolutions worth the name (embeddings, element-wise work, sorting) gain nothing. Some work
needs float32 or float64.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.moment import Device, Moment
from gpuwatch.detectors.rule import MomentRule, Positive, Quiet, Share, Thresholds, Verdict

_LATEST_STEP_SECONDS = 60.0


class Limits(Thresholds, frozen=True):
    ratio: Annotated[Share, Meta(description="share of cycles in which the tensor cores were active")] = 0.005
    busy_ratio: Annotated[Share, Meta(description="share of time in which the multiprocessors were busy")] = 0.3
    seconds: Annotated[Positive, Meta(description="time for which it must be so")] = 120.0


class AmpUnused(MomentRule[Limits]):
    name = "amp_unused"
    severity = "info"
    statistic = "share of cycles in which the tensor cores were active (ratio)"
    action = "Use torch.autocast with bfloat16, or torch.set_float32_matmul_precision('high')."
    thresholds_type = Limits

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._since_ns: int | None = None

    def judge(self, moment: Moment) -> Verdict | Quiet:
        told = [device for device in moment.devices if device.value("tensor_active_ratio") is not None]
        stepping = moment.step_age_seconds is not None and moment.step_age_seconds < _LATEST_STEP_SECONDS
        if not told or not stepping:
            self._since_ns = None
            return Quiet.UNMEASURED
        idle = all(self._is_idle(device) for device in told)
        busy = [device for device in told if (device.value("sm_active_ratio") or 0.0) > self.thresholds.busy_ratio]
        if not idle or moment.facts.get("precision") != "fp32":
            self._since_ns = None
            return Quiet.FINE
        if not busy:  # between steps, in a validation pass: it says nothing about the steps
            return Quiet.UNMEASURED
        self._since_ns = moment.monotonic_ns if self._since_ns is None else self._since_ns
        if moment.monotonic_ns - self._since_ns < self.thresholds.seconds * 1e9:
            return Quiet.UNMEASURED
        active = max(device.value("tensor_active_ratio") or 0.0 for device in told)
        summary = (
            f"GPU {busy[0].label} computes in float32, and its tensor cores are active {active:.1%} of the time"
            f" (step {moment.step})."
        )
        return Verdict(active, self.thresholds.ratio, summary)

    def _is_idle(self, device: Device) -> bool:
        return (device.value("tensor_active_ratio") or 0.0) < self.thresholds.ratio
