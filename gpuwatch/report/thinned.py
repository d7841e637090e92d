"""A series reduced to what a picture can show, with its peaks kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec


class Stretch(msgspec.Struct, frozen=True):
    """A stretch of successive points: its middle step, and the least, mean and largest of its finite values."""

    step: float
    least: float
    mean: float
    largest: float


def thin(steps: Sequence[int], values: Sequence[float], points: int) -> tuple[list[Stretch], list[int]]:
    """At most `points` stretches of equal width in steps, and the steps whose value was not finite (at most `points`)."""
    if not steps:
        return [], []
    first, width = steps[0], max(1.0, (steps[-1] - steps[0] + 1) / points)
    bins: dict[int, list[float]] = {}
    wild: dict[int, int] = {}
    for step, value in zip(steps, values, strict=True):
        index = int((step - first) / width)
        if math.isfinite(value):
            bins.setdefault(index, []).append(value)
        else:
            wild.setdefault(index, step)
    stretches = [
        Stretch(first + (index + 0.5) * width - 0.5, min(found), math.fsum(found) / len(found), max(found))
        for index, found in sorted(bins.items())
    ]
    return stretches, sorted(wild.values())
