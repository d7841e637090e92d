"""A GPU that the run is on is slowed down to protect itself.

## What it means

The board halves its clocks, or worse, because it is too hot or its power supply is short (hardware reasons), or the driver
lowers them to stay below its temperature limit (software). Every rank of the run waits for the slowed one. The power cap
does not count: a training GPU runs at it.

## The test

The share of the last `seconds` seconds in which the driver counted throttling: above `hardware_ratio` for hardware_thermal or
hardware_power_brake it is a warning, above `software_ratio` for software_thermal info.

## What to do

1. hardware_thermal and software_thermal: fans, airflow, inlet temperature, dust; or a lower power limit for all ranks alike.
2. hardware_power_brake: the power supplies and their cabling.

## When it is wrong

It never is, for the GPU; the run may be bound by something else and lose nothing by it.
"""

from __future__ import annotations

from collections import deque
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.moment import Moment
from gpuwatch.detectors.rule import MomentRule, Positive, Quiet, Share, Thresholds, Verdict

_HARDWARE = ("hardware_thermal", "hardware_power_brake")
_SOFTWARE = ("software_thermal",)


class Limits(Thresholds, frozen=True):
    hardware_ratio: Annotated[Share, Meta(description="share of the time slowed down by the board")] = 0.1
    software_ratio: Annotated[Share, Meta(description="share of the time slowed down by the driver for heat")] = 0.5
    seconds: Annotated[Positive, Meta(description="time over which it is measured")] = 60.0


class GpuThrottled(MomentRule[Limits]):
    name = "gpu_throttled"
    severity = "warning"
    statistic = "share of the time in which the clocks were held down (ratio)"
    action = "Improve cooling or power, or set a lower power limit for all ranks alike."
    thresholds_type = Limits
    quiet_steps = 60

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._past: deque[tuple[int, dict[tuple[str, str], float]]] = deque()  # ns, (GPU, reason) -> seconds so far

    def judge(self, moment: Moment) -> Verdict | Quiet:
        now = {
            (device.label, reason): seconds
            for device in moment.devices
            for reason, seconds in device.readings("throttled_seconds_total").items()
            if reason in _HARDWARE or reason in _SOFTWARE
        }
        if not now:
            return Quiet.UNMEASURED
        self._past.append((moment.monotonic_ns, now))
        if moment.monotonic_ns - self._past[0][0] < self.thresholds.seconds * 1e9:
            return Quiet.UNMEASURED
        while len(self._past) > 2 and moment.monotonic_ns - self._past[1][0] >= self.thresholds.seconds * 1e9:
            self._past.popleft()
        then_ns, then = self._past[0]
        elapsed_seconds = (moment.monotonic_ns - then_ns) / 1e9
        shares = {key: (seconds - then[key]) / elapsed_seconds for key, seconds in now.items() if key in then}
        return self._worst(moment, shares)

    def _worst(self, moment: Moment, shares: dict[tuple[str, str], float]) -> Verdict | Quiet:
        limits = self.thresholds
        for reasons, limit, severity in (
            (_HARDWARE, limits.hardware_ratio, "warning"),
            (_SOFTWARE, limits.software_ratio, "info"),
        ):
            found = {key: share for key, share in shares.items() if key[1] in reasons and share > limit}
            if found:
                gpu, reason = max(found, key=lambda key: found[key])
                share = min(1.0, found[gpu, reason])
                summary = f"GPU {gpu} is slowed down ({reason}) {share:.0%} of the time, at step {moment.step}."
                return Verdict(share, limit, summary, severity=severity)
        return Quiet.FINE
