"""Steps were lost: the daemon did not read the ring in time.

## What it means

The hooks write into a ring of fixed size and never wait. When the daemon was away, stopped or too slow for longer than the
ring lasts (1,024 records by default), the oldest records were overwritten. Training was not affected; the recorded curves have
a gap, and `gpuwatch_train_records_dropped_total{reason="overwritten"}` says how many records it is.

## The test

The count of overwritten records has grown since the last step.

## What to do

1. Look for the daemon's restarts, and at the CPU that it gets (`systemctl status gpuwatch`).
2. With very short steps, record fewer of them (`--every 10`).

## When it is wrong

It never is: the count is exact. A daemon that was stopped on purpose for long leaves the same gap.
"""

from __future__ import annotations

from gpuwatch.detectors.rule import Quiet, Rule, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample


class RecordsOverwritten(Rule[Thresholds]):
    name = "records_overwritten"
    severity = "warning"
    statistic = "records overwritten before they were read"
    action = "See why the daemon was away or slow; with very short steps, record fewer of them (--every 10)."

    def __init__(self, thresholds: Thresholds) -> None:
        super().__init__(thresholds)
        self._known = 0

    def judge(self, sample: Sample) -> Verdict | Quiet:
        lost = sample.dropped.get("overwritten", 0)
        new = lost - self._known
        self._known = lost
        if new <= 0:
            return Quiet.FINE
        return Verdict(new, 0.0, f"{new} records were overwritten before step {sample.number} was read.")
