"""The daemon gets no readings from the GPUs, or from the host.

## What it means

The driver hangs or was taken away, or `/proc` cannot be read. The run's own curves go on; utilization, memory, power and
everything that is judged by them stand still.

## The test

For 15 seconds the component `nvml` or `host` of the daemon was down, or the sampling of GPUs said `failing`. A node without a
driver, sampling that is switched off, and one that was paused by hand are none of these.

## What to do

1. See whether `nvidia-smi` answers on the node: if it does, restart the daemon; if it hangs too, drain and reboot the node.
2. After a `systemctl daemon-reload` the device list of the unit may have been rewritten: restart the daemon.

## When it is wrong

A driver that is being upgraded is away for a minute, on purpose.
"""

from __future__ import annotations

from gpuwatch.detectors.moment import Moment
from gpuwatch.detectors.rule import MomentRule, Quiet, Thresholds, Verdict

_SAMPLERS = ("nvml", "host")


class SamplerStuck(MomentRule[Thresholds]):
    name = "sampler_stuck"
    severity = "warning"
    statistic = "samplers that get no readings"
    action = "See whether nvidia-smi answers: if so restart the daemon, else drain and reboot the node."
    open_after = 15
    open_within = 15
    quiet_steps = 5

    def judge(self, moment: Moment) -> Verdict | Quiet:
        stuck = {
            name: moment.components[name].error
            for name in _SAMPLERS
            if name in moment.components and not moment.components[name].up and moment.components[name].error
        }
        if moment.sampler == "failing":
            stuck.setdefault("nvml", "the driver does not answer")
        if not stuck:
            return Quiet.FINE
        reasons = "; ".join(f"{name}: {error}" for name, error in stuck.items())
        return Verdict(len(stuck), 0.0, f"No readings at step {moment.step}: {reasons}.", first_step=max(1, moment.step))
