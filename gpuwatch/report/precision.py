"""The precision that a run computes in: what autocast brings, how the loss scale went, and what float16 would lose."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from gpuwatch.history.half_range import POWERS, half_range, of_scale
from gpuwatch.history.measures import Measures
from gpuwatch.history.past import Past
from gpuwatch.report.blocks import Block, Picture, Table, Text
from gpuwatch.report.chart import Line, Mark, line_chart
from gpuwatch.report.series import charts

_MIB = 1 << 20
_LOSING_LAYERS = 8
_SHOWN_SKIPS = 8
_MARKED_SKIPS = 100
_UNDERFLOW = {"Share of the gradient that fp16 loses": (("share", "grad_underflow_ratio"),)}


def blocks(past: Past, measured: Measures, marks: Sequence[Mark]) -> Iterator[Block]:
    """Nothing for a run in float32 of which nobody has asked."""
    found = [*_probed(past), *_loss_scale(past), *charts(past, _UNDERFLOW, marks), *_half(past)]
    if found:
        yield Text(f"The forward pass ran in {measured.precision}.")
    yield from found


def _probed(past: Past) -> Iterator[Block]:
    """What the AMP probe has measured in the run, as a table."""
    facts = {name: value for name, value in past.facts.items() if isinstance(value, int | float)}
    if "amp_speedup_ratio" not in facts:
        return
    ratio, low, high = (facts.get(f"amp_speedup_{part}", math.nan) for part in ("ratio", "low", "high"))
    speedups = "1.00x", f"{ratio:.2f}x ({low:.2f} to {high:.2f})"
    saving = facts.get("amp_memory_saving_ratio")
    saved = "-", "-" if saving is None else f"{saving:.1%}"
    names = "float32", str(past.facts.get("amp_variant", "autocast"))
    rows = []
    for name, prefix, speedup, save in zip(names, ("amp_base_", "amp_"), speedups, saved, strict=True):
        rate, peak = facts.get(f"{prefix}steps_per_second"), facts.get(f"{prefix}peak_bytes")
        memory = "-" if peak is None else f"{peak / _MIB:,.0f} MiB"
        rows.append((name, "-" if rate is None else f"{rate:.4g}", speedup, memory, save))
    yield Table(("AMP probe", "it/s", "speed-up (95 %)", "peak memory", "saved"), tuple(rows), frozenset({1, 2, 3, 4}))


def _loss_scale(past: Past) -> Iterator[Block]:
    steps, scales = past.series("loss_scale")
    if not len(scales):
        return
    skipped = [step for step, value in zip(*past.series("skipped"), strict=True) if value > 0.0]
    backoffs = sum(value for value in past.values("loss_scale_backoffs") if value > 0.0)
    marks = [Mark(step, "warning", "update skipped") for step in skipped[:_MARKED_SKIPS]]
    if svg := line_chart("Loss scale", [Line("scale", steps, scales)], marks, powers_of_two=True):
        yield Picture("loss-scale", "Loss scale (dashed: updates that were skipped)", svg)
    told = ", ".join(f"{step:,}" for step in skipped[:_SHOWN_SKIPS])
    more = f" and {len(skipped) - _SHOWN_SKIPS:,} more" if len(skipped) > _SHOWN_SKIPS else ""
    finite = [scale for scale in scales if math.isfinite(scale)] or [math.nan]
    heading = ("loss scale at the start", "least", "largest", "at the end", "back-offs", "skipped updates")
    row = (*(f"{value:,.6g}" for value in (scales[0], min(finite), max(finite), scales[-1])), f"{backoffs:,.0f}")
    yield Table(heading, ((*row, f"{len(skipped):,}"),), frozenset(range(6)))
    if skipped:
        yield Text(f"Skipped at step {told}{more}: their gradients were not finite at that scale.")


def _half(past: Past) -> Iterator[Block]:
    """The run's last gradients in float16, as a function of the loss scale."""
    found = half_range(past)
    if found is None:
        return
    best = found.recommended_power
    svg = line_chart("Lost in float16 by scale (powers of two)", [Line("share", list(POWERS), list(found.lost))])
    if any(found.lost):
        yield Picture("underflow-by-scale", "Share lost in float16 at a loss scale of 2^x, in the last gradients", svg)
    verdict = (
        "float16 is wide enough; bfloat16 would need no loss scale at all."
        if found.fits
        else "float16 is too narrow for them at any scale: use bfloat16, which has float32's range."
    )
    yield Text(
        f"In float16 the last gradients want a loss scale of {1 << best:,} (2^{best}), at which {found.lost[best]:.2%} of them"
        f" are flushed to zero: {verdict}"
    )
    scales = past.values("loss_scale")
    power = of_scale(scales[-1]) if len(scales) else 0
    losing = found.first_to_underflow(power)[:_LOSING_LAYERS]
    if losing:
        rows = tuple((layer.name, f"{layer.lost_ratio(power):.1%}", f"{layer.lost_ratio(best):.1%}") for layer in losing)
        now = f"at the run's 2^{power}" if len(scales) else "without a scale"
        yield Table(("layers that underflow first", now, f"at 2^{best}"), rows, frozenset({1, 2}))
