"""Memory grows with every step.

## What it means

Something keeps what each step has made: a list of losses that still hold their graphs (`total += loss` without `.item()`),
outputs stored for a report, a hook or cache that grows, `retain_graph`. It ends in an out-of-memory error.

## The test

Two series are followed: the bytes that torch's tensors take on the device, at the end of each step, and the resident memory
of the process. Each is cut into blocks of at least `block_steps` steps, once of a second or more and once of 30 seconds or
more, and of each block the smallest value is kept, since a leak raises the floor and not only the peaks. It leaks when the
floor has risen in each of the last 10 blocks, the last 3 of these rises are together at least half as large as the first 3,
and the whole is more than 16 MiB and more than `ratio` of where it was. Device memory is a warning; the process's own
memory is info, and a warning from a tenth of the host's memory on.

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
#: Seconds of a block, at least.
_SCALES = (0.9, 30.0)
_LEAST_BYTES = 16 << 20
_HOST_SHARE = 0.1
_PROCESS = "The resident memory of the process"
_DEVICE = "The device memory of torch's tensors"
_MIB = 1 << 20


class Limits(Thresholds, frozen=True):
    ratio: Annotated[Positive, Meta(description="growth over ten blocks, of the first one")] = 0.05
    block_steps: Annotated[Steps, Meta(description="steps of a block, at least")] = 20


class _Floor:
    """The smallest value of each block of one series; a block is `seconds` long, or longer."""

    def __init__(self, seconds: float) -> None:
        self.verdict: Verdict | Quiet = Quiet.UNMEASURED  # when the last block was completed
        self.blocks: deque[tuple[int, float]] = deque(maxlen=_BLOCKS + 1)  # first step, smallest value
        self._seconds = seconds
        self._began = (0, 0, 0, 0.0)  # step, steps counted, monotonic ns (0: not yet), smallest so far

    def add(self, moment: Moment, monotonic_ns: int, value: float, block_steps: int) -> bool:
        """Take in a value of this time; True when a block has just been completed."""
        step, steps, since_ns, smallest = self._began
        if since_ns == 0:
            self._began = (moment.step, moment.steps, monotonic_ns, value)
            return False
        smallest = min(smallest, value)
        self._began = (step, steps, since_ns, smallest)
        if moment.steps - steps < block_steps or (monotonic_ns - since_ns) / 1e9 < self._seconds:
            return False
        self.blocks.append((step, smallest))
        self._began = (moment.step, moment.steps, monotonic_ns, value)
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
        self._device = [_Floor(seconds) for seconds in _SCALES]
        self._process = [_Floor(seconds) for seconds in _SCALES]

    def judge(self, moment: Moment) -> Verdict | Quiet:
        if moment.status != "live":
            return Quiet.UNMEASURED
        # The host is looked at by its own clock: the same sample twice would be a second without growth.
        sampled_ns = moment.host.monotonic_ns if moment.host is not None and moment.process is not None else 0
        resident = moment.process.resident_bytes if moment.process is not None else 0
        allocated = moment.value("torch_allocated_bytes")
        looked = False
        for name, floors, when_ns, value in (
            (_PROCESS, self._process, sampled_ns, float(resident)),
            (_DEVICE, self._device, moment.monotonic_ns if allocated is not None else 0, allocated or 0.0),
        ):
            for floor in floors:
                if when_ns and floor.add(moment, when_ns, value, self.thresholds.block_steps):
                    looked = True
                    floor.verdict = self._judge(moment, floor, name)
        if not looked:
            return Quiet.UNMEASURED
        found = [floor.verdict for floor in (*self._device, *self._process) if isinstance(floor.verdict, Verdict)]
        return found[0] if found else Quiet.FINE

    def _judge(self, moment: Moment, floor: _Floor, what: str) -> Verdict | Quiet:
        growth = floor.growth()
        first_step, start = floor.blocks[0]
        threshold = self.thresholds.ratio
        if growth <= _LEAST_BYTES or growth <= threshold * start:
            return Quiet.FINE
        size = moment.host.memory_size_bytes if moment.host is not None else 0
        severity = "warning" if what is _DEVICE or (size and growth > _HOST_SHARE * size) else "info"
        steps = max(1, moment.step - first_step)
        summary = (
            f"{what} has grown by {growth / _MIB:.0f} MiB in {steps} steps up to {moment.step},"
            f" {growth / steps / 1024:.3g} KiB a step."
        )
        return Verdict(growth / max(start, 1.0), threshold, summary, severity=severity, first_step=max(1, first_step))
