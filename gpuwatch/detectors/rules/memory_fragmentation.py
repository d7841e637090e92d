"""Torch's allocator holds much more memory than it can use.

## What it means

The allocator keeps freed blocks for later. When sizes change from step to step, the blocks that it keeps do not fit what is
asked for next, and it takes more and more. An out-of-memory error then comes while gigabytes are "reserved but unallocated".

## The test

What the allocator has reserved exceeds the most that its tensors ever took by more than `ratio` of the GPU's memory, and the
driver has less than `free_ratio` of it free, in 20 of the last 30 seconds.

## What to do

1. `PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True`.
2. Pad or bucket inputs to a few shapes; run the largest shape first.
3. Call `torch.cuda.empty_cache()` between phases of different shapes (not at each step: it synchronises).

## When it is wrong

After a phase with larger tensors (a validation with a larger batch) that torch counted before its peak was reset, the
reserve is what that phase needs again.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.moment import Moment
from gpuwatch.detectors.rule import MomentRule, Quiet, Share, Thresholds, Verdict

_GIB = 1 << 30


class Limits(Thresholds, frozen=True):
    ratio: Annotated[Share, Meta(description="reserved beyond the peak, over the GPU's memory")] = 0.25
    free_ratio: Annotated[Share, Meta(description="free memory over the GPU's memory, below which it matters")] = 0.15


class MemoryFragmentation(MomentRule[Limits]):
    name = "memory_fragmentation"
    severity = "warning"
    statistic = "memory reserved beyond the tensors' peak, over the GPU's memory (ratio)"
    action = "Set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True; use fewer input shapes."
    thresholds_type = Limits
    open_after = 20
    open_within = 30
    quiet_steps = 30

    def judge(self, moment: Moment) -> Verdict | Quiet:
        reserved, peak = moment.value("torch_reserved_bytes"), moment.value("torch_allocated_peak_bytes")
        if reserved is None or peak is None or len(moment.devices) != 1:
            return Quiet.UNMEASURED
        (device,) = moment.devices
        free, size = device.value("memory_free_bytes"), device.value("memory_size_bytes")
        if free is None or not size:
            return Quiet.UNMEASURED
        ratio = (reserved - peak) / size
        if ratio <= self.thresholds.ratio or free / size >= self.thresholds.free_ratio:
            return Quiet.FINE
        summary = (
            f"torch holds {(reserved - peak) / _GIB:.1f} GiB on GPU {device.label} beyond the {peak / _GIB:.1f}"
            " GiB that its tensors ever"
            f" took, and {free / _GIB:.1f} GiB are free (step {moment.step})."
        )
        return Verdict(ratio, self.thresholds.ratio, summary)
