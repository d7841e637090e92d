"""Histograms against numpy's, an independent implementation."""

import struct

import numpy as np
import pytest
import torch
from gpuwatch_hooks import bins


def rows(tensor):
    data, finite = bins.rows(bins.measure(tensor))
    return data, tensor.numel() - finite


def unpack(data):
    return np.array(struct.unpack(f"<{len(data) // 8}d", data)).reshape(-1, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8])
@pytest.mark.parametrize("size", [2, 1000, 70_001])  # the last needs several pieces, and the last piece is short
def test_counts_equal_numpys(dtype, size):
    torch.manual_seed(size)
    tensor = (torch.randn(size, dtype=torch.float64) * 40 + 60).to(dtype)
    tensor[0] += 7  # never all equal
    data, nonfinite = rows(tensor)
    table = unpack(data)
    values = tensor.to(torch.float64).numpy()
    counts, edges = np.histogram(values, bins=64)
    assert nonfinite == 0
    np.testing.assert_allclose(table[:, 0], edges[:-1], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(table[:, 1], edges[1:], rtol=1e-12, atol=1e-12)
    assert table[:, 2].sum() == size
    # Our edges and numpy's differ in the last bit, so a value on an edge may fall to either side: compare on our own edges.
    own, _ = np.histogram(values, bins=np.append(table[:, 0], table[-1, 1]))
    np.testing.assert_array_equal(table[:, 2], own)
    assert np.abs(table[:, 2] - counts).sum() <= 0.02 * size + 4


def test_nonfinite_entries_are_left_out_and_counted():
    tensor = torch.tensor([1.0, float("nan"), 2.0, float("inf"), -float("inf"), 3.0])
    data, nonfinite = rows(tensor)
    table = unpack(data)
    assert nonfinite == 3
    assert table[:, 2].sum() == 3
    assert (table[0, 0], table[-1, 1]) == (1.0, 3.0)


def test_nothing_finite_gives_empty_bins():
    for tensor in (torch.full((5,), float("nan")), torch.empty(0)):
        data, nonfinite = rows(tensor)
        table = unpack(data)
        assert nonfinite == tensor.numel()
        assert table.shape == (64, 3)
        assert (table[:, 0] < table[:, 1]).all()
        assert table[:, 2].sum() == 0


@pytest.mark.parametrize("value", [0.0, -0.0, 3.0, -1e300, 5e-324, -7e-310])
def test_equal_values_fall_into_one_bin_that_holds_them(value):
    table = unpack(rows(torch.full((9,), value, dtype=torch.float64))[0])
    assert (table[:, 0] < table[:, 1]).all()
    ((left, right, count),) = table[table[:, 2] > 0]
    assert count == 9
    assert left <= value < right


def test_the_whole_range_of_float64_does_not_overflow():
    largest = 1.7976931348623157e308
    for values in ([-largest, 0.0, largest], [largest, largest]):
        table = unpack(rows(torch.tensor(values, dtype=torch.float64))[0])
        assert np.isfinite(table).all()
        assert (table[:, 0] < table[:, 1]).all()
        assert table[:, 2].sum() == len(values)


def test_neighbours_in_float64_share_one_bin():
    above = np.nextafter(1.0, 2.0)
    table = unpack(rows(torch.tensor([1.0, above], dtype=torch.float64))[0])
    ((left, right, count),) = table[table[:, 2] > 0]
    assert left <= 1.0 < above < right
    assert count == 2
