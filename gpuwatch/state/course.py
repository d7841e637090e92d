"""The course of a value over a whole run, however long: means over equal stretches of steps, in bounded memory."""

from __future__ import annotations

import math

import msgspec

#: When this many stretches are full, each two become one: between half as many and this many always tell the whole run.
STRETCHES = 80


class Course(msgspec.Struct):
    """Stretch i: the `stride` steps from `first_step + i * stride` on. Of finite values the sum and the number."""

    first_step: int = 0
    stride: int = 1
    sums: list[float] = []
    counts: list[int] = []
    nonfinite_counts: list[int] = []

    def add(self, step: int, value: float) -> None:
        """Take in the value of a step that is later than all before it."""
        if not self.counts:
            self.first_step = step
        index = (step - self.first_step) // self.stride
        while index >= STRETCHES:
            self._fold()
            index = (step - self.first_step) // self.stride
        while len(self.counts) <= index:
            self.sums.append(0.0)
            self.counts.append(0)
            self.nonfinite_counts.append(0)
        total = self.sums[index] + value
        if math.isfinite(total):
            self.sums[index] = total
            self.counts[index] += 1
        else:
            self.nonfinite_counts[index] += 1

    def means(self) -> list[float | None]:
        """One a stretch, oldest first; NaN where a value was not finite, None where none was measured."""
        return [
            math.nan if nonfinite else total / count if count else None
            for total, count, nonfinite in zip(self.sums, self.counts, self.nonfinite_counts, strict=True)
        ]

    def copy(self) -> Course:
        return Course(self.first_step, self.stride, list(self.sums), list(self.counts), list(self.nonfinite_counts))

    def _fold(self) -> None:
        pairs = range(0, len(self.counts), 2)
        sums = [sum(self.sums[i : i + 2]) for i in pairs]
        counts = [sum(self.counts[i : i + 2]) for i in pairs]
        others = [sum(self.nonfinite_counts[i : i + 2]) for i in pairs]
        for i, total in enumerate(sums):
            if not math.isfinite(total):  # two sums may overflow together
                sums[i], counts[i], others[i] = 0.0, 0, others[i] + counts[i]
        self.sums, self.counts, self.nonfinite_counts = sums, counts, others
        self.stride *= 2
