"""A tensor's histogram as TensorBoard stores it: rows of (left edge, right edge, count).

In two parts, because a large CUDA tensor is binned where it lives: `measure` is a chain of tensor operations without one read
of a value, so that nobody waits; `rows` reads its 130 numbers once they have reached the host.
"""

import math
import struct
import sys

from .snapshot import PIECE_ELEMENTS

BINS = 64
#: A step of this many float64 temporaries on the device: 32 MiB each.
DEVICE_PIECE_ELEMENTS = 4 << 20


def measure(tensor):
    """float64[130] on the tensor's device: 65 edges, 64 counts, and the number of finite entries, of any plain real tensor.

    The finite entries fall into 64 bins of equal width between the smallest and the largest; the last bin is closed.
    """
    import torch

    flat = tensor.reshape(-1)
    pieces = flat.split(PIECE_ELEMENTS if flat.device.type == "cpu" else DEVICE_PIECE_ELEMENTS)
    with torch.no_grad():
        low = torch.full((), math.inf, dtype=torch.float64, device=flat.device)
        high = -low
        for piece in pieces:
            if piece.numel():
                values, finite = _finite(piece)
                low = torch.minimum(low, torch.where(finite, values, math.inf).amin())
                high = torch.maximum(high, torch.where(finite, values, -math.inf).amax())
        share = torch.arange(BINS + 1, dtype=torch.float64, device=flat.device) / BINS
        edges = low * (1 - share) + high * share
        counts = torch.zeros(BINS, dtype=torch.int64, device=flat.device)
        for piece in pieces:
            values, finite = _finite(piece)
            counts.scatter_add_(0, _bin_of(values, low, high, edges), finite.long())
        return torch.cat([edges, counts.to(torch.float64), counts.sum().to(torch.float64).reshape(1)])


def rows(measured):
    """(rows, finite): float64[64][3] of (left, right, count) as bytes from measure's tensor on the CPU, and the finite entries.

    All counts are 0 when no entry is finite.
    """
    cells = measured.tolist()
    edges, counts, finite = cells[: BINS + 1], cells[BINS + 1 : -1], int(cells[-1])
    if not all(edges[i] < edges[i + 1] for i in range(BINS)):
        # No value, one value, or neighbours so near that float64 has no room for 64 edges between them.
        low, high = _around(edges[0], edges[-1]) if finite else (0.0, 1.0)
        edges = [low * (1 - i / BINS) + high * (i / BINS) for i in range(BINS + 1)]
        counts = [0] * BINS
        counts[BINS // 2] = finite
    flat = [cell for i in range(BINS) for cell in (edges[i], edges[i + 1], counts[i])]
    return struct.pack("<%dd" % len(flat), *flat), finite


def _finite(piece):
    import torch

    values = piece.to(torch.float64)
    return values, torch.isfinite(values)


def _bin_of(values, low, high, edges):
    """int64: the bin of each value, anything for those that are not finite. A guess by division, then one edge compared to
    either side. (torch.bucketize would do, but starts the thread pool from 200 elements on: see snapshot.py.)"""
    import torch

    guess = (values / 2 - low / 2) / (high / 2 - low / 2) * BINS  # halves, or the range of float64 itself overflows
    index = torch.nan_to_num(guess, 0.0).clamp_(0, BINS - 1).long()
    index -= (values < edges.index_select(0, index)).long()
    index.clamp_(0, BINS - 1)
    index += (values >= edges.index_select(0, index + 1)).long()
    return index.clamp_(0, BINS - 1)


def _around(low, high):
    """Room for 64 bins such that the middle one holds low..high (save at the very ends of float64's range)."""
    margin = max(abs(low), abs(high)) * 2.0**-20 or 2.0**-20
    shift = margin / BINS  # half a bin
    return max(low - margin - shift, -sys.float_info.max), min(low + margin - shift, sys.float_info.max)
