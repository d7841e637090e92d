"""How text looks on a terminal: colours that respect NO_COLOR and pipes, sparklines, bars, quantities with their unit."""

from __future__ import annotations

import itertools
import math
import os
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"


def coloured() -> bool:
    """Whether standard output takes colours: a terminal, or FORCE_COLOR; never with NO_COLOR (no-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (sys.stdout.isatty() and os.environ.get("TERM") != "dumb")


def paint(text: str, colour: str, *, bold: bool = False) -> str:
    return click.style(text, fg=colour or None, bold=bold) if coloured() else text


def dim(text: str) -> str:
    return click.style(text, dim=True) if coloured() else text


def sparkline(values: Sequence[float | None], width: int = 40) -> str:
    """The values as blocks from their smallest to their largest; non-finite ones as `!`, missing ones as a blank.

    More values than `width` are averaged in equal stretches. Positive values that span more than two decades are drawn by
    their logarithm: else one loss of 1,000 hides what happened at 1.
    """
    if len(values) > width:
        edges = [len(values) * i // width for i in range(width + 1)]
        values = [_mean(values[a:b]) for a, b in itertools.pairwise(edges)]
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if finite and min(finite) > 0 and max(finite) > 100 * min(finite):
        values = [math.log10(v) if v is not None and math.isfinite(v) else v for v in values]
        finite = [math.log10(v) for v in finite]
    low, span = (min(finite), max(finite) - min(finite)) if finite else (0.0, 0.0)

    def block(value: float | None) -> str:
        if value is None:
            return " "
        if not math.isfinite(value):
            return "!"
        return _BLOCKS[round((value - low) / span * (len(_BLOCKS) - 1)) if span > 0 else 0]

    return "".join(map(block, values))


def _mean(stretch: Sequence[float | None]) -> float | None:
    known = [v for v in stretch if v is not None]
    return sum(known) / len(known) if known else None


def bar(shares: Sequence[tuple[float, str]], width: int = 40) -> str:
    """One bar of `width` cells split by `shares` of (ratio, one-character fill); rounding errors fall on the last."""
    cells, done = "", 0.0
    for ratio, fill in shares:
        done += ratio
        cells += fill * (round(min(done, 1.0) * width) - len(cells))
    return cells.ljust(width, "·")


def quantity_of_bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def quantity_of_seconds(value: float) -> str:
    """A duration as a person says it: 340 us, 12.3 ms, 4.2 s, 3 min 5 s, 2 h 14 min."""
    if value < 1e-3:
        return f"{value * 1e6:.0f} us"
    if value < 1:
        return f"{value * 1e3:.1f} ms"
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def number(value: float | None) -> str:
    """Four significant digits; what is not there is a dash."""
    return "-" if value is None else f"{value:.4g}"
