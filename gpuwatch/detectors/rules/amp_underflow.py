"""Float16 flushes small gradients to zero, and a larger loss scale would save them.

## What it means

Below 2^-24 float16 has nothing but zero, and just above it only a few bits. Without a loss scale, or with one that is too
small, a part of the gradients is lost in the backward pass, without a trace: the weights that they belong to do not learn.

## The test

It is exact: the log2 histogram of each 4th step that has one of the gradients (true units, 64 buckets of a factor of two)
is moved by the step's loss scale, 1 where float16 autocast runs without a GradScaler. Counted are the entries other than
zero that lie below 2^-20 there: those that float16 would flush, and those that it keeps with less than 4 bits, the
neighbours of what it has flushed already. The statistic is their share of all entries that are not zero, over the last 3 of
these. Above `info_ratio` it is info, above `warning_ratio` a warning. The summary names the smallest scale that would bring
the share below a tenth of `info_ratio`, and the head-room that it leaves before the largest entry overflows; when no scale
does both, it says so. It is not judged where the loss has come down to less than 1 % of what it began with: nothing is lost
there that matters.

## What to do

1. Without a GradScaler: use one, or bfloat16, which needs none.
2. With one: let it grow (`growth_interval`), or set `init_scale` to the scale in the summary.
3. When no scale fits, the range of the gradients is wider than float16's: bfloat16, or a normalisation that evens it out.

## When it is wrong

Gradients that are tiny by design (a softmax over very many classes, a mask that is nearly closed) are lost without harm. With
a GradScaler at its defaults the scale grows by itself each 2,000 steps, so that an early finding may heal.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Annotated

from gpuwatch_hooks import wire
from msgspec import Meta

from gpuwatch.detectors.rule import Quiet, Rule, Share, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample
from gpuwatch.state import layers

_BUCKETS = wire.HISTOGRAM_BUCKETS
_FLOAT16 = float(wire.AUTOCAST_DTYPES.index("float16"))
#: Below this float16 keeps less than 4 of its bits; below 2^-25 none.
_FRAYED_EXPONENT = -20
_LARGEST = 65504.0
_HISTOGRAMS = 3
#: Adding up the histograms of 150 tensors takes 0.3 ms, three times as long as all other rules together.
_EVERY = 4
_FIRST_LOSSES = 20
_CONVERGED_RATIO = 0.01


class Limits(Thresholds, frozen=True):
    info_ratio: Annotated[Share, Meta(description="share of lost entries that is worth a note")] = 0.10
    warning_ratio: Annotated[Share, Meta(description="share of lost entries that is a warning")] = 0.25


class AmpUnderflow(Rule[Limits]):
    name = "amp_underflow"
    severity = "warning"
    statistic = "share of gradient entries that float16 flushes or keeps with under 4 bits (ratio)"
    action = "Use a GradScaler with the scale that the summary names, or bfloat16."
    thresholds_type = Limits
    open_after = 3
    open_within = 3

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._recent: deque[list[int]] = deque(maxlen=_HISTOGRAMS)
        self._exponent = 0
        self._seen_histograms = 0
        self._seen = 0
        self._start = 0.0
        self._converged = False

    def judge(self, sample: Sample) -> Verdict | Quiet:
        self._follow_loss(sample)
        scale = sample.value("loss_scale")
        if scale is None and sample.value("autocast_dtype") == _FLOAT16:
            scale = 1.0
        if scale is None or scale <= 0.0 or not sample.applied or not sample.step.histograms:
            return Quiet.UNMEASURED
        self._seen_histograms += 1
        counts = self._counts(sample) if self._seen_histograms % _EVERY == 0 else None
        if counts is None:
            return Quiet.UNMEASURED
        self._recent.append(counts)
        if len(self._recent) < _HISTOGRAMS:
            return Quiet.UNMEASURED
        if self._converged:
            return Quiet.FINE
        whole = [sum(column) for column in zip(*self._recent, strict=True)]
        share = self._lost(whole, scale)
        limits = self.thresholds
        if share <= limits.info_ratio:
            return Quiet.FINE
        severity = "warning" if share > limits.warning_ratio else "info"
        threshold = limits.warning_ratio if severity == "warning" else limits.info_ratio
        text = f"float16 loses {share:.0%} of the gradient entries at loss scale {scale:.6g} (step {sample.number}); "
        return Verdict(share, threshold, text + self._advice(sample, whole), severity=severity)

    def _follow_loss(self, sample: Sample) -> None:
        loss = sample.value("loss")
        if loss is None:
            return
        self._seen += 1
        if self._seen <= _FIRST_LOSSES:
            self._start += (abs(loss) - self._start) / self._seen
        self._converged = abs(loss) < _CONVERGED_RATIO * self._start

    def _counts(self, sample: Sample) -> list[int] | None:
        """Entries other than zero a bucket, all tensors together; None when zeros cannot be told from what is tiny."""
        zeros = sample.column("gradient", "zero_ratio")
        counts = [0] * _BUCKETS
        for rows in sample.step.histograms:
            self._exponent = rows.first_exponent
            tensors = list(layers.buckets(rows))
            counts = [sum(column, count) for count, *column in zip(counts, *(buckets for _, buckets in tensors), strict=True)]
            for index, buckets in tensors:
                if zeros is not None and index < len(zeros) and zeros[index] > 0.0 and buckets[0]:
                    counts[0] -= min(buckets[0], round(zeros[index] * sum(buckets)))
        if zeros is None:
            counts[0] = 0
        return counts if sum(counts) else None

    def _lost(self, counts: list[int], scale: float) -> float:
        """Share of the entries whose whole bucket lies below 2^-20 once it is multiplied with `scale`."""
        limit = math.floor(_FRAYED_EXPONENT - math.log2(scale) + 1e-9) - self._exponent
        return sum(counts[: max(0, min(limit, _BUCKETS))]) / sum(counts)

    def _advice(self, sample: Sample, counts: list[int]) -> str:
        largest = sample.value("grad_absmax")
        if largest is None or largest <= 0.0:
            largest = 2.0 ** (self._exponent + max(place for place, count in enumerate(counts) if count) + 1)
        for exponent in range(64):
            scale = 2.0**exponent
            if self._lost(counts, scale) <= 0.1 * self.thresholds.info_ratio:
                room = _LARGEST / (largest * scale)
                if room < 1.0:
                    break
                return f"a scale of {scale:.6g} would save them, and leave a factor of {room:.3g} before the largest overflows."
        return "no scale saves them without an overflow of the largest: use bfloat16."
