"""The run trains under autocast, and autocast was measured to speed nothing up.

## What it means

Mixed precision costs care (a loss scale, skipped steps, range). Where it brings no speed, only the memory that it saves speaks
for it. Usual reasons: the step waits for something else (data, the host, communication), matrices are too small or not
multiples of 8, or the device has no units for the type.

## The test

The AMP probe (`gpuwatch probe amp`, `gpuwatch run --amp-probe`) has alternated blocks of steps with autocast and without in
this run. The finding opens when the run trains under autocast and the upper end of the speed-up's 95 % interval is below
`ratio`: also the best that the measurement allows is no gain. Without a probe nothing is said.

## What to do

1. Look at the phases: with much of the step in `data` or `other`, no precision helps.
2. Make widths and batch sizes multiples of 8 (better 64), and batches larger: autocast saved memory for that.
3. Else train in float32, or TF32, and be rid of the loss scale.

## When it is wrong

A job that was disturbed during the probe may have wide or shifted intervals: probe again with more steps. A run that needs
autocast for its memory loses nothing by it.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.moment import Moment
from gpuwatch.detectors.rule import MomentRule, Positive, Quiet, Thresholds, Verdict

_HALF = {"fp16", "bf16"}


class Limits(Thresholds, frozen=True):
    ratio: Annotated[Positive, Meta(description="speed-up that is worth having")] = 1.05


class AmpNoSpeedup(MomentRule[Limits]):
    name = "amp_no_speedup"
    severity = "info"
    statistic = "upper end of the measured speed-up's 95 % interval (ratio)"
    action = "Look at the phases of the step; larger batches in multiples of 8, or float32 without a loss scale."
    thresholds_type = Limits

    def judge(self, moment: Moment) -> Verdict | Quiet:
        ratio, high = moment.facts.get("amp_speedup_ratio"), moment.facts.get("amp_speedup_high")
        if not isinstance(ratio, int | float) or not isinstance(high, int | float):
            return Quiet.UNMEASURED
        if moment.facts.get("precision") not in _HALF or high >= self.thresholds.ratio:
            return Quiet.FINE
        saving = moment.facts.get("amp_memory_saving_ratio")
        saved = f", and saves {saving:.0%} of the memory" if isinstance(saving, int | float) else ""
        summary = f"Autocast makes this run {ratio:.2f} times as fast, {high:.2f} at the most{saved} (step {moment.step})."
        return Verdict(high, self.thresholds.ratio, summary)
