"""Runs with more tensors than the wire's name table holds: the rest becomes one row, `_other`."""

import math
from array import array

from . import wire

_NORM, _ABSMAX, _MEAN_ABS, _MEAN, _STD, _ZEROS, _BAD, _LOST = range(len(wire.TENSOR_COLUMNS))


def folded(cells, rows, width, numels):
    """The first rows - 1 rows as they are, all others merged into one: array of rows * width cells, float32 or u32.

    `numels`: entries of each tensor, by which means and shares are weighted. Rows of NaN (no gradient) have no part in it.
    """
    if not rows:
        return array(cells.typecode)
    kept = cells[: (rows - 1) * width]
    rest = [cells[at : at + width] for at in range((rows - 1) * width, len(cells), width)]
    if width != len(wire.TENSOR_COLUMNS):
        kept.extend([min(sum(column), 0xFFFFFFFF) for column in zip(*rest)])
        return kept
    weighted = [(row, numel) for row, numel in zip(rest, numels[rows - 1 :]) if not math.isnan(row[_NORM])]
    kept.extend(_merged(weighted) if weighted else [math.nan] * width)
    return kept


def _merged(weighted):
    total = sum(numel for _, numel in weighted) or 1

    def mean(column):
        return sum(row[column] * numel for row, numel in weighted) / total

    merged = [0.0] * len(wire.TENSOR_COLUMNS)
    merged[_NORM] = math.hypot(*[row[_NORM] for row, _ in weighted])
    merged[_ABSMAX] = max(row[_ABSMAX] for row, _ in weighted)
    for column in (_MEAN_ABS, _MEAN, _ZEROS, _LOST):
        merged[column] = mean(column)
    merged[_BAD] = sum(row[_BAD] for row, _ in weighted)
    second = sum((row[_STD] ** 2 + row[_MEAN] ** 2) * numel for row, numel in weighted) / total
    merged[_STD] = math.sqrt(max(0.0, second - merged[_MEAN] ** 2))
    return merged
