"""A GPU that the run is on does not answer any more.

## What it means

The driver's calls for it fail or hang: it has fallen off the bus, its system processor does not answer, or the driver was
reloaded under a running job. The job on it is lost, whether it has noticed or not.

## The test

A GPU on which the run's process was seen has been down for 5 seconds. While sampling as a whole stands still (paused, or the
driver library away) nothing is concluded about single GPUs.

## What to do

Drain the node, look for Xid messages (`dmesg | grep -i xid`), reset the GPU (`nvidia-smi --gpu-reset`) or reboot; restart
the job from its last checkpoint elsewhere. If it comes back like this, have the board replaced.

## When it is wrong

A MIG device that an administrator removed, or a GPU that was reset on purpose.
"""

from __future__ import annotations

from gpuwatch.detectors.moment import Moment
from gpuwatch.detectors.rule import MomentRule, Quiet, Thresholds, Verdict


class GpuLost(MomentRule[Thresholds]):
    name = "gpu_lost"
    severity = "critical"
    statistic = "GPUs of the run that do not answer"
    action = "Drain the node, look for Xid messages, reset the GPU or reboot; restart the job from a checkpoint elsewhere."
    open_after = 5
    open_within = 5
    quiet_steps = 5

    def judge(self, moment: Moment) -> Verdict | Quiet:
        if not moment.devices or moment.sampler != "sampling":
            return Quiet.UNMEASURED
        lost = [device for device in moment.devices if not device.up]
        if not lost:
            return Quiet.FINE
        gpus = ", ".join(device.label for device in lost)
        summary = f"GPU {gpus} does not answer, since about step {moment.step}: {lost[0].reason}."
        return Verdict(len(lost), 0.0, summary, first_step=max(1, moment.step))
