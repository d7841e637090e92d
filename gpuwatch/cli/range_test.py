"""What `gpuwatch lr-find` asks of the hooks, and the curve that came back."""

from __future__ import annotations

import json
import math
from typing import NamedTuple

from gpuwatch.history.past import Past

STEPS, LEAST, LARGEST = 100, 1e-7, 10.0


def asked(steps: int = STEPS, least: float = LEAST, largest: float = LARGEST, *, goes_on: bool = False) -> str:
    """The value of GPUWATCH_LR_FIND."""
    return json.dumps({"steps": steps, "min": least, "max": largest, "continue": goes_on})


class Point(NamedTuple):
    rate: float
    loss: float
    smoothed: float


class RangeTest(NamedTuple):
    """A finished test. `suggestion`: steepest descent; `minimum_tenth`: a tenth of the lowest point's rate; None: none."""

    points: list[Point]
    suggestion: float | None
    minimum_tenth: float | None
    diverged: bool
    failed: str  # why there is none, or ""
    cut_short: bool = False  # the command ended in the middle of it


def of(past: Past) -> RangeTest | None:
    """The test that a run recorded, or None when it recorded none."""
    by_step: dict[int, dict[str, float]] = {}
    for tag in ("rate", "loss", "smoothed_loss"):
        for scalar in past.scalars.get(f"lr_find/{tag}", ()):
            by_step.setdefault(scalar.step, {})[tag] = scalar.value
    points = [Point(at["rate"], at["loss"], at["smoothed_loss"]) for _, at in sorted(by_step.items()) if len(at) == 3]
    failed = str(past.facts.get("lr_find_failed", ""))
    if not points and not failed:
        return None
    found = [past.facts.get(f"lr_find_{name}") for name in ("suggestion", "minimum_tenth")]
    suggestion, tenth = (float(value) if isinstance(value, int | float) else None for value in found)
    return RangeTest(
        points, suggestion, tenth, bool(past.facts.get("lr_find_diverged")), failed, bool(past.facts.get("lr_find_cut_short"))
    )


def plot(test: RangeTest, width: int = 64, height: int = 10) -> list[str]:
    """The smoothed curve for a terminal, loss upwards and the logarithm of the rate to the right."""
    finite = [point for point in test.points if math.isfinite(point.smoothed)]
    if len(finite) < 2:
        return []
    low, high = min(point.smoothed for point in finite), max(point.smoothed for point in finite)
    # The last points climb to several times the start: the fall that matters would be one row high.
    high = min(high, finite[0].smoothed + 0.5 * (finite[0].smoothed - low)) if finite[0].smoothed > low else high
    first, last = math.log10(finite[0].rate), math.log10(finite[-1].rate)
    cells = [[" "] * width for _ in range(height)]
    for point in finite:
        column = round((math.log10(point.rate) - first) / (last - first or 1.0) * (width - 1))
        share = (min(point.smoothed, high) - low) / (high - low or 1.0)
        cells[height - 1 - round(share * (height - 1))][column] = "•"
    if test.suggestion is not None:
        column = round((math.log10(test.suggestion) - first) / (last - first or 1.0) * (width - 1))
        for row in cells:
            row[column] = "│" if row[column] == " " else row[column]
    labels = [f"{high:.3g}", *[""] * (height - 2), f"{low:.3g}"]
    lines = [f"{label:>9} ┤{''.join(row)}" for label, row in zip(labels, cells, strict=True)]
    ends = f"{finite[0].rate:.1e}", f"{finite[-1].rate:.1e}"
    return [*lines, f"{'':>9} └{'─' * width}", f"{'':>11}{ends[0]}{ends[1]:>{width - len(ends[0])}}"]
