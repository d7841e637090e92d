"""A line chart as SVG: the mean of each stretch as a line, its extremes as a band behind it, findings as marks.

The picture takes its colours from the page (`currentColor`, CSS classes), so that it is readable on light and dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import msgspec

from gpuwatch.report.thinned import Stretch, thin

WIDTH, HEIGHT = 460, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 10, 10, 22
_POINTS = 200
#: Positive values that span more than two decades are drawn by their logarithm.
_LOG_SPAN = 100.0
#: The bands of more lines than these hide one another.
_BANDS = 2


class Mark(msgspec.Struct, frozen=True):
    """A vertical line at a step: a finding's beginning."""

    step: int
    severity: str
    text: str


class Line(msgspec.Struct, frozen=True):
    """One series of a chart: int64[n] steps, float64[n] values."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]


def line_chart(title: str, lines: Sequence[Line], marks: Sequence[Mark] = (), *, powers_of_two: bool = False) -> str:
    """The chart, or "" when no line has a finite point. `powers_of_two`: for positive values that double and halve."""
    thinned = [(line, *thin(line.steps, line.values, _POINTS)) for line in lines]
    found = [stretch for _, stretches, _ in thinned for stretch in stretches]
    if not found:
        return ""
    reach = [step for line in lines if line.steps for step in (line.steps[0], line.steps[-1])]
    scale = _Scale.of(found, min(reach), max(reach), powers_of_two=powers_of_two)
    parts = [*_grid(scale)]
    for mark in marks:
        if scale.first <= mark.step <= scale.last:
            x = scale.x(mark.step)
            text = html.escape(f"{mark.text} (step {mark.step:,})")
            parts.append(
                f'<line class="mark {mark.severity}" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}">'
                f"<title>{text}</title></line>"
            )
    for number, (line, stretches, wild) in enumerate(thinned):
        parts += _drawn(scale, stretches, number, with_band=len(lines) <= _BANDS)
        for step in wild:
            told = f"<title>not finite at step {step:,}</title>"
            parts.append(f'<path class="wild" d="M{scale.x(step) - 3:.1f} {_TOP}h6l-3 6z">{told}</path>')
        if len(lines) > 1:
            x = _LEFT + 6 + 90 * number
            parts.append(f'<text class="l{number}" x="{x}" y="{_TOP + 9}">{html.escape(line.name)}</text>')
    label = html.escape(title)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{label}</title>{''.join(parts)}</svg>"
    )


class _Scale(msgspec.Struct, frozen=True):
    first: int
    last: int
    low: float
    high: float
    base: int  # of the logarithm, 0 for none: `low` and `high` are powers of it

    @classmethod
    def of(cls, found: Sequence[Stretch], first: int, last: int, *, powers_of_two: bool) -> _Scale:
        low, high = min(stretch.least for stretch in found), max(stretch.largest for stretch in found)
        if powers_of_two and low > 0.0:
            return cls(first, max(last, first + 1), math.log2(low) - 0.5, math.log2(high) + 0.5, base=2)
        if low > 0.0 and high > _LOG_SPAN * low:
            return cls(first, max(last, first + 1), math.log10(low), math.log10(high), base=10)
        room = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
        return cls(first, max(last, first + 1), low - room if low else 0.0, high + room, base=0)

    def x(self, step: float) -> float:
        return _LEFT + (step - self.first) / (self.last - self.first) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        place = math.log2(value) if self.base == 2 else math.log10(value) if self.base else value
        share = (place - self.low) / (self.high - self.low or 1.0)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def _drawn(scale: _Scale, stretches: Sequence[Stretch], number: int, *, with_band: bool) -> list[str]:
    if not stretches:
        return []
    upper = [f"{scale.x(s.step):.1f},{scale.y(s.largest):.1f}" for s in stretches]
    lower = [f"{scale.x(s.step):.1f},{scale.y(s.least):.1f}" for s in reversed(stretches)]
    means = [f"{scale.x(s.step):.1f},{scale.y(s.mean):.1f}" for s in stretches]
    if len(stretches) == 1:
        x, y = means[0].split(",")
        return [f'<circle class="l{number}" cx="{x}" cy="{y}" r="2.5"/>']
    band = [f'<polygon class="band b{number}" points="{" ".join(upper + lower)}"/>'] if with_band else []
    return [*band, f'<polyline class="line s{number}" points="{" ".join(means)}"/>']


def _grid(scale: _Scale) -> list[str]:
    parts = []
    for value, text in _ticks(scale):
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{_LEFT - 5}" y="{y + 3:.1f}">{text}</text>')
    for step, anchor in ((scale.first, "start"), ((scale.first + scale.last) // 2, "middle"), (scale.last, "end")):
        parts.append(f'<text class="tick" text-anchor="{anchor}" x="{scale.x(step):.1f}" y="{HEIGHT - 7}">{step:,}</text>')
    return parts


def _ticks(scale: _Scale) -> list[tuple[float, str]]:
    if scale.base:
        every = max(1, math.ceil((scale.high - scale.low) / 5))
        powers = [power for power in range(math.ceil(scale.low), math.floor(scale.high) + 1) if power % every == 0]
        if scale.base == 2:
            return [(2.0**power, f"{2.0**power:g}" if -7 <= power <= 19 else f"2^{power}") for power in powers]
        return [(10.0**power, f"1e{power}" if not -3 <= power <= 4 else f"{10.0**power:g}") for power in powers]
    rough = (scale.high - scale.low) / 4
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    first = math.ceil(scale.low / step)
    return [(n * step, f"{n * step:.6g}") for n in range(first, math.floor(scale.high / step) + 1)]
