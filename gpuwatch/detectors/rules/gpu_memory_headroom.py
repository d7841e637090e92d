"""There is next to no GPU memory left.

## What it means

The next larger batch, a validation with another shape, or fragmentation ends the run with an out-of-memory error.

## The test

Left is what the driver says is free, and what torch's allocator holds in reserve beyond the largest amount that its tensors
ever took: a caching allocator fills a GPU as a matter of course. Bad is less than `ratio` of a GPU's memory, on any GPU
that the run is on, in 20 of the last 30 seconds.

## What to do

1. A smaller batch with gradient accumulation, mixed precision, or activation checkpointing.
2. End other processes on the GPU (`gpuwatch top` shows them).
3. `PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True`, when `memory_fragmentation` is told too.

## When it is wrong

A job that is tuned to fill its GPU, with shapes that never change, runs like this for ever.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.moment import Moment
from gpuwatch.detectors.rule import MomentRule, Quiet, Share, Thresholds, Verdict


class Limits(Thresholds, frozen=True):
    ratio: Annotated[Share, Meta(description="memory that can still be had, over the GPU's memory")] = 0.05


class GpuMemoryHeadroom(MomentRule[Limits]):
    name = "gpu_memory_headroom"
    severity = "warning"
    statistic = "memory that can still be had over the GPU's memory (ratio)"
    action = "Use a smaller batch with accumulation, mixed precision or checkpointing; end other processes on the GPU."
    thresholds_type = Limits
    open_after = 20
    open_within = 30
    quiet_steps = 30

    def judge(self, moment: Moment) -> Verdict | Quiet:
        reserve = 0.0
        reserved, peak = moment.value("torch_reserved_bytes"), moment.value("torch_allocated_peak_bytes")
        if reserved is not None and peak is not None and len(moment.devices) == 1:
            reserve = max(0.0, reserved - peak)
        left = {}
        for device in moment.devices:
            free, size = device.value("memory_free_bytes"), device.value("memory_size_bytes")
            if free is not None and size:
                left[device.label] = (free + reserve) / size
        if not left:
            return Quiet.UNMEASURED
        gpu = min(left, key=lambda label: left[label])
        if left[gpu] >= self.thresholds.ratio:
            return Quiet.FINE
        summary = f"GPU {gpu} has {left[gpu]:.1%} of its memory left at step {moment.step}, torch's reserve included."
        return Verdict(left[gpu], self.thresholds.ratio, summary)
