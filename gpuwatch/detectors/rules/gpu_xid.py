"""The driver has reported an Xid error of a GPU that the run is on.

## What it means

Xid numbers say what went wrong. 48, 63 and 64, 94 and 95 are about memory; 74 about NVLink; 79 says that the GPU has fallen
off the bus; 119 and 120 that its system processor does not answer. 13 and 31 are faults of the program: an index out of
range or an illegal address, as a rule in a custom kernel.

## The test

The count of an Xid has grown since the run began. Critical are 48, 62, 64, 74, 79, 95, 119 and 120, after which the GPU
needs a reset or service; 13, 31, 43, 45, 63 and 92 are info, because the program itself or routine causes them; all others
are warnings.

## What to do

1. Critical: restart the job elsewhere from its last checkpoint; reset the GPU or reboot; run the vendor's diagnostics.
2. 13 and 31: run with `CUDA_LAUNCH_BLOCKING=1` or compute-sanitizer and look for an index out of range.

## When it is wrong

Another process on the same GPU may have caused it. Errors from before the daemon started are not counted.
"""

from __future__ import annotations

from gpuwatch.detectors.moment import Moment
from gpuwatch.detectors.rule import MomentRule, Quiet, Thresholds, Verdict

_CRITICAL = frozenset({"48", "62", "64", "74", "79", "95", "119", "120"})
_ROUTINE = frozenset({"13", "31", "43", "45", "63", "92"})
_SEVERITIES = ("info", "warning", "critical")


class GpuXid(MomentRule[Thresholds]):
    name = "gpu_xid"
    severity = "warning"
    statistic = "Xid errors since the run began"
    action = "Restart the job elsewhere from a checkpoint, reset the GPU and run diagnostics; 13 and 31: look for a bad index."
    quiet_steps = 300  # moments: an error has no duration of its own

    def __init__(self, thresholds: Thresholds) -> None:
        super().__init__(thresholds)
        self._known: dict[tuple[str, str], float] = {}  # (GPU, Xid) -> count when the run began, or the GPU was first seen
        self._gpus: set[str] = set()
        self._told = 0.0

    def judge(self, moment: Moment) -> Verdict | Quiet:
        if not moment.devices:
            return Quiet.UNMEASURED
        new: dict[tuple[str, str], float] = {}
        for device in moment.devices:
            for xid, count in device.readings("xid_errors_total").items():
                if device.label not in self._gpus:
                    self._known[device.label, xid] = count
                elif count > self._known.get((device.label, xid), 0.0):
                    new[device.label, xid] = count - self._known.get((device.label, xid), 0.0)
            self._gpus.add(device.label)
        total = sum(new.values())
        if total <= self._told:
            return Quiet.FINE
        self._told = total
        gpu, xid = max(new, key=lambda key: (_rank(key[1]), new[key]))
        summary = f"GPU {gpu} reported Xid {xid} {new[gpu, xid]:.0f} time(s) in this run, last at about step {moment.step}."
        return Verdict(total, 0.0, summary, severity=_SEVERITIES[_rank(xid)], first_step=max(1, moment.step))


def _rank(xid: str) -> int:
    return 2 if xid in _CRITICAL else 0 if xid in _ROUTINE else 1
