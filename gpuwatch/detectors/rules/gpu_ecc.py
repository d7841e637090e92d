"""A GPU that the run is on has memory errors that ECC could not correct.

## What it means

A value in the GPU's memory was wrong. The driver ends the process that touched it, if it can tell which; results that were
computed meanwhile cannot be trusted.

## The test

The count of uncorrected errors since the driver was loaded (`lifetime="volatile"`) has grown since the run began. Corrected
errors are none: they were corrected.

## What to do

Return to a checkpoint from before, restart elsewhere, reset the GPU so that the row is replaced, and have the board
replaced if errors return.

## When it is wrong

The error may lie in memory of another process. The count is read every 10 seconds, so the step is only about right.
"""

from __future__ import annotations

from gpuwatch.detectors.moment import Moment
from gpuwatch.detectors.rule import MomentRule, Quiet, Thresholds, Verdict


class GpuEcc(MomentRule[Thresholds]):
    name = "gpu_ecc"
    severity = "critical"
    statistic = "uncorrected memory errors since the run began"
    action = "Return to a checkpoint from before and restart elsewhere; reset the GPU; replace the board if errors return."
    quiet_steps = 300

    def __init__(self, thresholds: Thresholds) -> None:
        super().__init__(thresholds)
        self._known: dict[str, float] = {}
        self._told = 0.0

    def judge(self, moment: Moment) -> Verdict | Quiet:
        new = {}
        measured = False
        for device in moment.devices:
            count = device.value("ecc_errors_total", severity="uncorrected", lifetime="volatile")
            if count is not None:
                measured = True
                new[device.label] = count - self._known.setdefault(device.label, count)
        if not measured:
            return Quiet.UNMEASURED
        total = sum(max(count, 0.0) for count in new.values())
        if total <= self._told:
            return Quiet.FINE
        self._told = total
        gpu = max(new, key=lambda label: new[label])
        summary = (
            f"GPU {gpu} had {new[gpu]:.0f} memory errors in this run that ECC could not correct (about step {moment.step})."
        )
        return Verdict(total, 0.0, summary, first_step=max(1, moment.step))
