"""Curves and bars of block characters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_EIGHTHS = " ▁▂▃▄▅▆▇█"
PEAK = "╌"


def plot(ratios: Sequence[float | None], width: int, height: int, peak_ratio: float | None = None) -> list[str]:
    """`height` rows of `width` cells, top first: the latest values, newest at the right, 0 at the bottom and 1 at the top.

    `peak_ratio` is drawn as a broken line at its height, where the curve leaves room. A value that is not there is a blank
    column; one that is there draws at least an eighth of a cell, so that 0 and nothing differ.
    """
    latest = list(ratios)[-width:] if width else []
    columns = [None] * (width - len(latest)) + latest
    levels = [None if ratio is None else max(1, round(min(1.0, max(0.0, ratio)) * 8 * height)) for ratio in columns]
    rows = ["".join(_cell(level, height - 1 - row) for level in levels) for row in range(height)]
    if peak_ratio and height > 1:  # a peak of nothing is none
        row = height - 1 - min(height - 1, int(min(1.0, max(0.0, peak_ratio)) * height))
        rows[row] = rows[row].replace(" ", PEAK)
    return rows


def bar(ratio: float | None, width: int) -> str:
    """A horizontal bar of `width` cells, to the eighth."""
    if ratio is None:
        return " " * width
    eighths = round(min(1.0, max(0.0, ratio)) * 8 * width)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(width, "·")


def split_bar(shares: Sequence[tuple[float, str]], width: int) -> str:
    """One bar of `width` cells split by shares of (ratio, one-character fill); rounding errors fall on the last."""
    cells, done = "", 0.0
    for ratio, fill in shares:
        done += ratio
        cells += fill * (round(min(done, 1.0) * width) - len(cells))
    return cells.ljust(width, "·")


def _cell(level: int | None, row: int) -> str:
    return " " if level is None else _EIGHTHS[min(8, max(0, level - 8 * row))]
