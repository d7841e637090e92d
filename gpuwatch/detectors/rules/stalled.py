"""The process lives, and makes no step.

## What it means

Training hangs: ranks wait in a collective for one that is elsewhere or dead, a DataLoader's worker is stuck, a file system
does not answer, a lock is held, or the process was stopped.

## The test

No step for `seconds` seconds, for `usual_factor` times what 99 % of the run's steps take, and for twice its longest recent
step: validation passes and checkpoints are steps too, and how long they take is learned from the run. Nothing is judged
before the second step.

## What to do

1. Look at the Python stacks of all ranks (`gpuwatch stacks`, `py-spy dump`). Those that wait in a collective are victims; the
   one that is elsewhere is the cause.
2. If it is a DataLoader: set its `timeout`, look at the storage.
3. Kill the job and start it from its last checkpoint when it does not go on.

## When it is wrong

The first validation pass or checkpoint of a run that takes longer than `seconds` cannot be told from a hang; the second one
can. A notebook that waits for its user looks the same.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.moment import Moment
from gpuwatch.detectors.rule import MomentRule, Positive, Quiet, Thresholds, Verdict

_LONGEST_FACTOR = 2.0


class Limits(Thresholds, frozen=True):
    seconds: Annotated[Positive, Meta(description="silence that is judged at all")] = 60.0
    usual_factor: Annotated[Positive, Meta(description="times what 99 % of the steps take")] = 10.0


class Stalled(MomentRule[Limits]):
    name = "stalled"
    severity = "critical"
    statistic = "seconds since the last step"
    action = "Look at the Python stacks of all ranks for the one that is elsewhere; restart from the last checkpoint."
    thresholds_type = Limits
    quiet_steps = 3

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._longest_seconds = 0.0  # ever: a window of steps may forget the last validation

    def judge(self, moment: Moment) -> Verdict | Quiet:
        silence = moment.step_age_seconds
        if silence is None or moment.steps < 2 or moment.status != "live":
            return Quiet.UNMEASURED
        limits = self.thresholds
        self._longest_seconds = max(self._longest_seconds, moment.longest_seconds)
        allowed = max(limits.seconds, limits.usual_factor * moment.usual_seconds, _LONGEST_FACTOR * self._longest_seconds)
        if silence <= allowed:
            return Quiet.FINE
        summary = (
            f"No step for {silence:.0f} s since step {moment.step}; 99 % of the steps took at most"
            f" {moment.usual_seconds:.3g} s."
        )
        return Verdict(silence, allowed, summary, first_step=max(1, moment.step))
