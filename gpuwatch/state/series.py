"""Bounded windows of a series: the last `capacity` points, in two flat arrays."""

from __future__ import annotations

import itertools
from array import array


class Window:
    """The last `capacity` (step, value) points of one series; 16 bytes a point, grown only as far as it is filled."""

    __slots__ = ("_next", "_steps", "_values", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._steps = array("q")
        self._values = array("d")
        self._next = 0  # where the next point goes, once full

    def append(self, step: int, value: float) -> None:
        if len(self._steps) < self.capacity:
            self._steps.append(step)
            self._values.append(value)
            return
        index = self._next
        self._steps[index] = step
        self._values[index] = value
        self._next = index + 1 if index + 1 < self.capacity else 0

    def __len__(self) -> int:
        return len(self._steps)

    def steps(self) -> array[int]:
        """int64[len], oldest first: a copy."""
        return self._steps[self._next :] + self._steps[: self._next]

    def values(self) -> array[float]:
        """float64[len], oldest first: a copy."""
        return self._values[self._next :] + self._values[: self._next]

    def means(self, points: int) -> list[float]:
        """At most `points` means over equal stretches, oldest first: the window's shape for a small plot."""
        values = self.values()
        stretches = min(points, len(values))
        edges = [len(values) * i // stretches for i in range(stretches + 1)] if stretches else []
        return [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]

    def last(self) -> tuple[int, float] | None:
        """The newest point, if there is one."""
        if not self._steps:
            return None
        index = self._next - 1  # -1 is the end of an array that is not yet full, or has just wrapped
        return self._steps[index], self._values[index]
