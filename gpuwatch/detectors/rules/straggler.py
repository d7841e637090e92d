"""A rank is slower than its peers, who wait for it at every step.

## What it means

In data-parallel training the slowest rank sets the pace: the others spend the difference in the all-reduce, where they look
busy. Usual causes are a GPU with lower clocks, a busy CPU or disk, uneven batches, or work that only one rank does.

## The test

A rank's own time is what it spends on data loading and the forward pass; backward ends in the all-reduce, where the fast wait
for the slow. Over the last `steps` steps or more, and at least 2 s, its own time a step is compared with that of the fastest
rank of the run on this node. It straggles when it is more than `ratio` times as long and the difference is more than
`step_ratio` of its step time, in 3 of the last 4 seconds. Ranks on other nodes are compared by Prometheus
(`GpuwatchStragglerRank`).

## What to do

1. Compare clocks, temperature and throttling of its GPU with the others, and the CPU load of its process.
2. See whether the rank does more: logging, checkpoints, evaluation, longer sequences; shard by length.
3. Move it to another GPU, or take the node out.

## When it is wrong

With asynchronous kernels the forward phase is the host's time, so a GPU that computes slowly may not show here, and a rank
whose host runs ahead may. Pipeline stages differ by design: they hold tensors of other sizes, and are not compared.
"""

from __future__ import annotations

from collections import deque
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.moment import Moment, Replica
from gpuwatch.detectors.rule import MomentRule, Positive, Quiet, Share, Steps, Thresholds, Verdict

_SECONDS = 2.0
_LONGEST_SECONDS = 120.0


class Limits(Thresholds, frozen=True):
    ratio: Annotated[Positive, Meta(description="own time a step over that of the fastest rank")] = 1.5
    step_ratio: Annotated[Share, Meta(description="the difference over the step time")] = 0.15
    steps: Annotated[Steps, Meta(description="steps over which it is measured, at least")] = 50


class Straggler(MomentRule[Limits]):
    name = "straggler"
    severity = "warning"
    statistic = "own time a step over that of the fastest rank of the run (ratio)"
    action = "Compare its GPU's clocks, its CPU load and its batches with the other ranks'."
    thresholds_type = Limits
    open_after = 3
    open_within = 4
    quiet_steps = 10

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._past: deque[tuple[int, dict[int, Replica]]] = deque()  # monotonic ns, ranks

    def judge(self, moment: Moment) -> Verdict | Quiet:
        now = {replica.rank: replica for replica in moment.replicas}
        mine = now.get(moment.rank)
        if mine is None or len(now) < 2:
            self._past.clear()
            return Quiet.UNMEASURED
        self._past.append((moment.monotonic_ns, now))
        while moment.monotonic_ns - self._past[0][0] > _LONGEST_SECONDS * 1e9:
            self._past.popleft()
        start = self._start(mine, moment.monotonic_ns)
        if start is None:
            return Quiet.UNMEASURED
        own = {rank: taken for rank in now if (taken := _own_seconds(now, start, rank, mine.layout)) is not None}
        step_seconds = (mine.step_seconds - start[mine.rank].step_seconds) / (mine.steps - start[mine.rank].steps)
        if mine.rank not in own or len(own) < 2 or step_seconds <= 0.0:
            return Quiet.UNMEASURED
        return self._compare(moment, own, step_seconds)

    def _start(self, mine: Replica, now_ns: int) -> dict[int, Replica] | None:
        """The ranks as they were at the latest moment that lies far enough back."""
        found = None
        for then_ns, ranks in self._past:
            before = ranks.get(mine.rank)
            if before is None or now_ns - then_ns < _SECONDS * 1e9 or mine.steps - before.steps < self.thresholds.steps:
                break
            found = ranks
        return found

    def _compare(self, moment: Moment, own: dict[int, float], step_seconds: float) -> Verdict | Quiet:
        limits = self.thresholds
        fastest = min(own, key=lambda rank: own[rank])
        lost = own[moment.rank] - own[fastest]
        ratio = own[moment.rank] / max(own[fastest], 1e-9)
        if ratio <= limits.ratio or lost <= limits.step_ratio * step_seconds:
            return Quiet.FINE
        summary = (
            f"Rank {moment.rank} spends {own[moment.rank]:.3g} s a step on data and forward, rank {fastest}"
            f" {own[fastest]:.3g} s: the"
            f" others wait {lost:.3g} s of each {step_seconds:.3g} s step for it."
        )
        return Verdict(min(ratio, 1e6), limits.ratio, summary)


def _own_seconds(now: dict[int, Replica], start: dict[int, Replica], rank: int, layout: int) -> float | None:
    """Own seconds a step since `start`; None for a rank that was not there or holds another part of the model."""
    before, after = start.get(rank), now[rank]
    if before is None or after.layout != layout or after.steps <= before.steps:
        return None
    return (after.own_seconds - before.own_seconds) / (after.steps - before.steps)
