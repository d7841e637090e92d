"""Memory grows with every step.

## What it means

Something keeps what each step has made: a list of losses that still hold their graphs (`total += loss` without `.item()`),
outputs stored for a report, a hook or cache that grows, `retain_graph`. It ends in an out-of-memory error.

## The test

Two series are followed: the bytes that torch's tensors take on the device, at the end of each step, and the resident memory
of the process. Each is cut into blocks of at least `block_steps` steps (for the process also `block_seconds` seconds), and
of each block the smallest value is kept, since a leak raises the floor and not only the peaks. It leaks when the floor has
risen in each of the last 10 blocks, the last 3 rose no less than half as fast as the first 3 of them, and in all by more
than `ratio` of where it was and 64 MiB. Device memory is a warning, the process's own memory info, a warning from a tenth
of the host's memory on.

## What to do

1. Keep numbers, not tensors: `loss.item()`, or `loss.detach().cpu()`.
2. Look for lists, dicts and closures that outlive a step; clear caches; do not pass `retain_graph=True`.
3. Take an allocator snapshot (`torch.cuda.memory._dump_snapshot`) and see what the newest blocks belong to.

## When it is wrong

A dataset that is cached in memory while the first epoch runs grows just so, and stops. Sequences that get longer with a
curriculum raise the floor too.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.moment import Moment
from gpuwatch.detectors.rule import MomentRule, Positive, Quiet, Steps, Thresholds, Verdict

_BLOCKS = 10
_LEAST_BYTES = 64 << 20
_HOST_SHARE = 0.1
_MIB = 1 << 20


class Limits(Thresholds, frozen=True):
    ratio: Annotated[Positive, Meta(description="growth over ten blocks, of the first one")] = 0.05
    block_steps: Annotated[Steps, Meta(description="steps of a block, at least")] = 20
    block_seconds: Annotated[Positive, Meta(description="seconds of a block, at least")] = 10.0


class _Floor:
    """The smallest value of each block of one series."""

    def __init__(self) -> None:
        self.blocks: deque[tuple[int, float]] = deque(maxlen=_BLOCKS + 1)  # first step, smallest value
        self._began: tuple[int, int, float] | None = None  # steps, monotonic ns, smallest so far

    def add(self, moment: Moment, value: float, limits: Limits) -> bool:
        """Take in a value; True when a block has just been completed."""
        if self._began is None:
            self._began = (moment.steps, moment.monotonic_ns, value)
            return False
        steps, since_ns, smallest = self._began
        self._began = (steps, since_ns, min(smallest, value))
        seconds = (moment.monotonic_ns - since_ns) / 1e9
        if moment.steps - steps < limits.block_steps or seconds < limits.block_seconds:
            return False
        self.blocks.append((moment.step - (moment.steps - steps), min(smallest, value)))
        self._began = None
        return True

    def growth(self) -> float:
        """Bytes that the floor has risen by, if it rose throughout and has not slowed down; else 0.0."""
        if len(self.blocks) <= _BLOCKS:
            return 0.0
        floors = [floor for _, floor in self.blocks]
        rises = [after - before for before, after in itertools.pairwise(floors)]
        if min(rises) <= 0.0 or sum(rises[-3:]) < 0.5 * sum(rises[:3]):
            return 0.0
        return floors[-1] - floors[0]


class MemoryLeak(MomentRule[Limits]):
    name = "memory_leak"
    severity = "warning"
    statistic = "growth of the memory's floor over ten blocks, of the first one (ratio)"
    action = "Keep numbers instead of tensors (loss.item()); look for lists and caches that outlive a step."
    thresholds_type = Limits
    quiet_steps = 3  # blocks

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._device = _Floor()
        self._process = _Floor()

    def judge(self, moment: Moment) -> Verdict | Quiet:
        if moment.status != "live":
            return Quiet.UNMEASURED
        allocated = moment.value("torch_allocated_bytes")
        if allocated is not None and self._device.add(moment, allocated, self.thresholds):
            return self._judge(moment, self._device, "The device memory of torch's tensors", "warning")
        resident = moment.process.resident_bytes if moment.process is not None else None
        if resident is not None and self._process.add(moment, float(resident), self.thresholds):
            size = moment.host.memory_size_bytes if moment.host is not None else 0
            severity = "warning" if size and self._process.growth() > _HOST_SHARE * size else "info"
            return self._judge(moment, self._process, "The resident memory of the process", severity)
        return Quiet.UNMEASURED

    def _judge(self, moment: Moment, floor: _Floor, what: str, severity: str) -> Verdict | Quiet:
        growth = floor.growth()
        first_step, start = floor.blocks[0]
        if growth <= _LEAST_BYTES or growth <= self.thresholds.ratio * start:
            return Quiet.FINE
        steps = max(1, moment.step - first_step)
        summary = (
            f"{what} has grown by {growth / _MIB:.0f} MiB in {steps} steps up to {moment.step},"
            f" {growth / steps / 1024:.3g} KiB a step."
        )
        ratio = growth / max(start, 1.0)
        return Verdict(ratio, self.thresholds.ratio, summary, severity=severity, first_step=max(1, first_step))
