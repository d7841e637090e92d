"""A GPU that the run is on has a broken memory row.

## What it means

The board replaces broken rows of its memory by spare ones at the next reset (pending). When there is no spare one left
(failure), errors will come back.

## The test

The driver says that a row remap is pending, which is a warning, or that one has failed, which is critical.

## What to do

Pending: let the job end or reach a checkpoint, then reset the GPU (`nvidia-smi --gpu-reset`). Failed: take the GPU out of
service and have the board replaced.

## When it is wrong

A remap that is pending for a corrected error does no harm while it waits.
"""

from __future__ import annotations

from gpuwatch.detectors.moment import Moment
from gpuwatch.detectors.rule import MomentRule, Quiet, Thresholds, Verdict


class GpuRowRemap(MomentRule[Thresholds]):
    name = "gpu_row_remap"
    severity = "warning"
    statistic = "GPUs of the run with a row remap that is pending or has failed"
    action = "Pending: reset the GPU when the job has ended. Failed: have the board replaced."

    def judge(self, moment: Moment) -> Verdict | Quiet:
        failed = [device.label for device in moment.devices if device.value("row_remap_failure")]
        pending = [device.label for device in moment.devices if device.value("row_remap_pending")]
        if failed:
            return Verdict(len(failed), 0.0, f"GPU {', '.join(failed)} has no spare memory rows left.", severity="critical")
        if pending:
            return Verdict(len(pending), 0.0, f"GPU {', '.join(pending)} waits for a reset to replace a broken memory row.")
        told = any(device.value("row_remap_pending") is not None for device in moment.devices)
        return Quiet.FINE if told else Quiet.UNMEASURED
