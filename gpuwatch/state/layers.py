"""Per-tensor statistics: raw float32 rows as they came, unpacked only for those who ask."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator
from typing import TypeVar

from gpuwatch_hooks import wire

from gpuwatch.state.records import HistogramRows, TensorRows

_Array = TypeVar("_Array", "array[float]", "array[int]")  # array has no [] before Python 3.12
_COLUMNS = len(wire.TENSOR_COLUMNS)
_COLUMN_INDEX = {name: index for index, name in enumerate(wire.TENSOR_COLUMNS)}


def cells(rows: TensorRows) -> array[float]:
    """float32[count * 8]: all rows of a table, flat."""
    return _little_endian(array("f"), rows.cells)


def column(rows: TensorRows, name: str) -> array[float] | None:
    """float32[count]: one statistic of every tensor of the table; None when it was not measured."""
    index = _COLUMN_INDEX[name]
    return cells(rows)[index::_COLUMNS] if rows.columns >> index & 1 else None


def statistics(tables: Iterable[TensorRows], family: str) -> Iterator[tuple[int, dict[str, float]]]:
    """(tensor index, its measured statistics by name) of one family."""
    for rows in tables:
        if rows.family != family:
            continue
        flat = cells(rows)
        measured = [(name, index) for name, index in _COLUMN_INDEX.items() if rows.columns >> index & 1]
        for row in range(rows.count):
            yield rows.first + row, {name: flat[row * _COLUMNS + index] for name, index in measured}


def buckets(rows: HistogramRows) -> Iterator[tuple[int, array[int]]]:
    """(tensor index, uint32[64] counts) of every tensor of the table."""
    flat = _little_endian(array("I"), rows.buckets)
    for row in range(rows.count):
        yield rows.first + row, flat[row * wire.HISTOGRAM_BUCKETS : (row + 1) * wire.HISTOGRAM_BUCKETS]


def _little_endian(flat: _Array, data: bytes) -> _Array:
    flat.frombytes(data)
    if sys.byteorder == "big":
        flat.byteswap()
    return flat
