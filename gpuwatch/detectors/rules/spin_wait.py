"""The GPU is fully busy at idle power, and no step is made.

## What it means

A kernel spins: a collective that waits for a rank which does not come. Utilization says 100 %, so everything that watches
only utilization believes that the job trains.

## The test

For `seconds` seconds the run made no step, while a GPU that it is on was more than 95 % busy and drew less than
`power_ratio` of its power limit.

## What to do

1. Look at the Python stacks of all ranks for the one that is not in the collective (`gpuwatch stacks`).
2. Set a timeout for collectives (`init_process_group(timeout=...)`), and restart from the last checkpoint.

## When it is wrong

A very light service on the same GPU (small kernels all the time) while this run validates on the CPU looks the same.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.moment import Device, Moment
from gpuwatch.detectors.rule import MomentRule, Positive, Quiet, Share, Thresholds, Verdict

_BUSY_RATIO = 0.95


class Limits(Thresholds, frozen=True):
    seconds: Annotated[Positive, Meta(description="time without a step")] = 60.0
    power_ratio: Annotated[Share, Meta(description="power over the power limit")] = 0.25


class SpinWait(MomentRule[Limits]):
    name = "spin_wait"
    severity = "critical"
    statistic = "power over the power limit of a GPU that is fully busy (ratio)"
    action = "Look at the Python stacks of all ranks for the one that is not in the collective; restart from a checkpoint."
    thresholds_type = Limits
    quiet_steps = 5

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._spinning: dict[str, int] = {}  # GPU -> since when, monotonic ns

    def judge(self, moment: Moment) -> Verdict | Quiet:
        silence = moment.step_age_seconds
        spinning = {device.label: device for device in moment.devices if self._spins(device)}
        self._spinning = {gpu: self._spinning.get(gpu, moment.monotonic_ns) for gpu in spinning}
        if silence is None or moment.status != "live" or not moment.devices:
            return Quiet.UNMEASURED
        limits = self.thresholds
        for gpu, since_ns in self._spinning.items():
            lasted_seconds = min(silence, (moment.monotonic_ns - since_ns) / 1e9)
            if lasted_seconds > limits.seconds:
                ratio = _power_ratio(spinning[gpu])
                summary = (
                    f"GPU {gpu} is fully busy at {ratio:.0%} of its power limit, and step {moment.step} was {silence:.0f}"
                    " s ago."
                )
                return Verdict(ratio, limits.power_ratio, summary, first_step=max(1, moment.step))
        return Quiet.FINE

    def _spins(self, device: Device) -> bool:
        busy = device.value("utilization_ratio")
        return busy is not None and busy > _BUSY_RATIO and 0.0 <= _power_ratio(device) < self.thresholds.power_ratio


def _power_ratio(device: Device) -> float:
    """Power over its limit; -1.0 when the device does not tell."""
    power, limit = device.value("power_watts"), device.value("power_limit_watts")
    return power / limit if power is not None and limit else -1.0
