"""Gradients are clipped while they still carry the loss scale.

## What it means

`clip_grad_norm_` was called between `scaler.scale(loss).backward()` and `scaler.step(optimizer)` without
`scaler.unscale_(optimizer)` before it. It then compares gradients that are thousands of times too large with the limit, so
that every step is clipped to a sliver: a limit of 1.0 at a scale of 1,024 lets updates with a norm of 0.001 through. Nothing
fails; the run just learns very slowly, and its speed changes whenever the scale does.

## The test

The hooks saw a clipping call on gradients that had not been unscaled, at a loss scale above 1.

## What to do

    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)          # this line is missing
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()

## When it is wrong

With a loss scale near 1 it makes no difference, and is not told. Clip functions that are not torch's are not seen.
"""

from __future__ import annotations

from gpuwatch.detectors.rule import Quiet, Rule, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample


class UnscaledClipping(Rule[Thresholds]):
    name = "unscaled_clipping"
    severity = "warning"
    statistic = "loss scale while clipping"
    action = "Call scaler.unscale_(optimizer) before clip_grad_norm_."

    def judge(self, sample: Sample) -> Verdict | Quiet:
        clipped = sample.values.get("clipped_while_scaled")
        scale = sample.value("loss_scale")
        if clipped is None or scale is None:
            return Quiet.UNMEASURED
        if not clipped > 0.0 or scale <= 1.0:
            return Quiet.FINE
        limit = sample.value("clip_max_norm")
        effect = f": the limit of {limit:g} acts as {limit / scale:.3g}" if limit is not None else ""
        summary = f"Gradients were clipped at step {sample.number} while scaled by {scale:g}{effect}."
        return Verdict(scale, 1.0, summary)
