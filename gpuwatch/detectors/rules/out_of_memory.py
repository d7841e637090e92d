"""The run ran out of memory.

## What it means

torch could not get memory on the device or on the host, or the kernel has killed the process because the host had none left.

## The test

Any of these is enough, and critical.

* The process ended in an out-of-memory error (`torch.OutOfMemoryError`, `MemoryError`, the CPU allocator's `can't allocate
  memory`); the hooks tell it with the error's first line.
* Torch's CUDA allocator counts more failures than a step before: the loop has caught the error and gone on.
* The process vanished without an end of its own, and in its last seconds the host had less than `host_free_ratio` of its
  memory free while the process held more than a tenth of it: the kernel's out-of-memory killer, most likely (`dmesg` says
  for sure).

## What to do

1. A smaller batch with gradient accumulation; mixed precision; activation checkpointing; a sharded optimizer.
2. If memory grew over time, see `memory_leak`; if much was reserved and unused, `memory_fragmentation`.
3. On the host: fewer DataLoader workers and a smaller `prefetch_factor`, no dataset held as Python lists.

## When it is wrong

Loops that search for the largest batch run out of memory on purpose. A process killed by hand while the host is full looks
like the third case.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.moment import Moment
from gpuwatch.detectors.rule import MomentRule, Quiet, Share, Thresholds, Verdict

_HELD_RATIO = 0.1


class Limits(Thresholds, frozen=True):
    host_free_ratio: Annotated[Share, Meta(description="free memory of the host when the process vanished")] = 0.03


class OutOfMemory(MomentRule[Limits]):
    name = "out_of_memory"
    severity = "critical"
    statistic = "out-of-memory errors"
    action = "Use a smaller batch with accumulation, mixed precision or checkpointing; on the host, fewer loader workers."
    thresholds_type = Limits

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._seen_ns = 0
        self._count = 0
        self._host_full = 0.0  # share of the host's memory that the process held when it was last seen full; 0: it was not

    def judge(self, moment: Moment) -> Verdict | Quiet:
        news = [e for e in moment.events if e.code == "out_of_memory" and e.monotonic_ns > self._seen_ns]
        if news:
            self._seen_ns = news[-1].monotonic_ns
            self._count += len(news)
            summary = f"Out of memory after step {news[-1].step}: {news[-1].text}"
            return Verdict(self._count, 0.0, summary, first_step=max(1, news[0].step))
        if moment.status == "lost" and self._host_full:
            summary = (
                f"The process vanished after step {moment.step} when the host had no memory left and it held"
                f" {self._host_full:.0%} of it: most likely the kernel's out-of-memory killer."
            )
            return Verdict(1.0, 0.0, summary, first_step=max(1, moment.step))
        self._look_at_host(moment)
        return Quiet.FINE

    def _look_at_host(self, moment: Moment) -> None:
        host, process = moment.host, moment.process
        if host is None or process is None or not host.memory_size_bytes:
            return
        free = 1.0 - host.memory_used_bytes / host.memory_size_bytes
        held = process.resident_bytes / host.memory_size_bytes
        self._host_full = held if free < self.thresholds.host_free_ratio and held > _HELD_RATIO else 0.0
