"""The layers of a recorded run over its whole length, at a number of steps that a page can show.

A journal of a day holds millions of tables. Steps are kept at a stride that doubles whenever too many are held, so that one
pass gives evenly spaced ones whatever the run's length, in bounded memory.
"""

from __future__ import annotations

import math
from array import array

from gpuwatch.state import layers
from gpuwatch.state.records import TensorRows

MAX_SAMPLED_STEPS = 128


class LayerSamples:
    """Feed it every table of one family in order; it keeps those of at most `capacity` evenly spaced steps, and the last."""

    def __init__(self, capacity: int = MAX_SAMPLED_STEPS) -> None:
        self._capacity = capacity
        self._stride = 1
        self._ordinal = -1  # of the present step among those that have tables
        self._step = -1
        self._kept: list[tuple[int, int, list[TensorRows]]] = []  # (ordinal, step, its tables)
        self._last: list[TensorRows] = []

    def add(self, rows: TensorRows) -> None:
        if rows.step != self._step:
            self._step, self._last = rows.step, []
            self._ordinal += 1
            if self._ordinal % self._stride == 0:
                if len(self._kept) >= self._capacity:
                    self._stride *= 2
                    self._kept = [kept for kept in self._kept if kept[0] % self._stride == 0]
                if self._ordinal % self._stride == 0:
                    self._kept.append((self._ordinal, rows.step, self._last))
        self._last.append(rows)

    @property
    def steps(self) -> list[int]:
        """The sampled step numbers, increasing."""
        return [step for _, step, _ in self._kept]

    def over_time(self, statistic: str) -> dict[int, array[float]]:
        """Tensor index -> float64[len(steps)] of one of wire.TENSOR_COLUMNS; NaN where a tensor was not measured."""
        found: dict[int, array[float]] = {}
        for position, (_, _, tables) in enumerate(self._kept):
            for rows in tables:
                column = layers.column(rows, statistic)
                for offset, value in enumerate(column if column is not None else ()):
                    series = found.get(rows.first + offset)
                    if series is None:
                        series = found[rows.first + offset] = array("d", [math.nan]) * len(self._kept)
                    series[position] = value
        return found

    def last(self) -> dict[int, dict[str, float]]:
        """Tensor index -> the latest of each of its statistics: some are measured at few steps only."""
        found: dict[int, dict[str, float]] = {}
        for tables in (*(kept for _, _, kept in self._kept), self._last):
            for rows in tables:
                for index, row in layers.statistics([rows], rows.family):
                    found.setdefault(index, {}).update(row)
        return found
