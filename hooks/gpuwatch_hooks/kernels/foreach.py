"""Statistics from plain torch operators: for a device that has no fused kernel, without one synchronisation.

Results stay on the device. Nothing here may branch on a value, and bincount, nonzero, unique, item and masked indexing
all wait for the device, so NaN and Inf are replaced before sums are taken and histograms come from torch.histc with given
limits. Sums are float64: the reads are bound by memory, and neither 1e-30 nor 1e30 vanishes when squared.
Temporary copies stay below PIECE_ELEMENTS entries, because the job may have filled the device's memory to the brim.
"""

from .. import wire
from .l2 import l2_norms

PIECE_ELEMENTS = 1 << 22


def norms(tensors, _sizes=None):
    """float64[len(tensors)] on the device: L2 norms, NaN or Inf where an entry is (the host then asks for a table)."""
    import torch

    return torch.stack(list(l2_norms(tensors, torch.float64)))


def table(tensors, scale=None, threshold=None):
    """float64[len(tensors), 8] on the device: rows of wire.TENSOR_COLUMNS, the last one NaN without `threshold`."""
    import torch

    rows = torch.zeros(len(tensors), len(wire.TENSOR_COLUMNS), dtype=torch.float64, device=tensors[0].device)
    for row, tensor in zip(rows, tensors):
        if tensor.numel():
            _fill(row, tensor, scale, threshold)
        if threshold is None:
            row[7].fill_(float("nan"))
    return rows


def _fill(row, tensor, scale, threshold):
    import torch

    double = torch.float64
    flat = tensor.reshape(-1)
    zero = torch.zeros((), dtype=double, device=tensor.device)
    sums = [zero.clone() for _ in range(6)]  # squares, magnitudes, values, non-zeros, non-finite, lost
    peak = zero.clone()
    for piece in flat.split(PIECE_ELEMENTS):
        clean = torch.nan_to_num(piece, nan=0.0, posinf=0.0, neginf=0.0)
        sums[4] += (clean != piece).sum()
        clean = clean.to(double if clean.dtype is double else torch.float32)
        if scale is not None:
            clean = clean * scale
        size = clean.abs()
        peak = torch.maximum(peak, size.amax().to(double))
        sums[0] += torch.linalg.vector_norm(clean, dtype=double).square()
        sums[1] += size.sum(dtype=double)
        sums[2] += clean.sum(dtype=double)
        filled = size > 0
        sums[3] += filled.sum()
        if threshold is not None:
            sums[5] += (filled & (size <= threshold)).sum()
    squares, magnitude, total, nonzero, bad, lost = sums
    finite = (flat.numel() - bad).clamp(min=1.0)
    mean = total / finite
    row[0] = squares.sqrt()
    row[1] = peak
    row[2] = magnitude / finite
    row[3] = mean
    row[4] = (squares / finite - mean * mean).clamp(min=0.0).sqrt()
    row[5] = (flat.numel() - bad - nonzero) / flat.numel()
    row[6] = bad
    row[7] = lost / nonzero.clamp(min=1.0)


def histograms(tensors, scale=None):
    """int32[len(tensors), 64] on the device in the buckets of wire.KIND_HISTOGRAMS; None in torch's deterministic mode.

    torch.histc adds with atomics, which torch.use_deterministic_algorithms(True) refuses with an error.
    """
    import torch

    if torch.are_deterministic_algorithms_enabled():
        return None
    buckets = wire.HISTOGRAM_BUCKETS
    result = torch.zeros(len(tensors), buckets, dtype=torch.float64, device=tensors[0].device)
    for row, tensor in zip(result, tensors):
        if not tensor.numel():
            continue
        for piece in tensor.reshape(-1).split(PIECE_ELEMENTS):
            wide = piece if piece.dtype is torch.float64 else piece.float()
            if scale is not None:
                wide = wide * scale
            _, exponent = torch.frexp(wide)  # |x| = m * 2**exponent, 0.5 <= m < 1
            bucket = (exponent - (1 + wire.HISTOGRAM_FIRST_EXPONENT)).clamp(0, buckets - 1)
            bucket = torch.where(wide == 0, torch.zeros_like(bucket), bucket)
            bucket = torch.where(torch.isfinite(wide), bucket, torch.full_like(bucket, -1))  # outside: not counted
            row.add_(torch.histc(bucket.float() + 0.5, buckets, 0, buckets))
    return result.to(torch.int32)
