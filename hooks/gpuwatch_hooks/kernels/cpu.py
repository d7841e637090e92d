"""Statistics of CPU tensors: a cheap pass that always runs, and dear ones for the steps that are sampled.

The always-on pass is one read, torch._foreach_norm over pieces of PIECE_ELEMENTS: 1.7 ms for 10.5 M floats in 150 tensors
on one core, where torch's own per-tensor norms take 1.4 ms and are off by 1e-5 to 3e-4 for a million entries and more
(float32 partial sums). Only a tensor whose norm is not finite, zero, or so small or large that float32 squares lose it, is
read again, exactly (`exact.py`): `isfinite().all()` on everything would cost 11 times the whole pass.
"""

import itertools
import math

from .. import wire
from . import small
from .exact import SAFE_LARGEST, SAFE_SMALLEST, exact_norm, exact_row
from .l2 import l2_norms

#: Entries a piece has: 256 KiB of float32 stay in the second-level cache while several statistics read them, and a float32
#: sum of so many squares is exact to 6e-7.
PIECE_ELEMENTS = 65536


def pieces(tensor):
    """Flat views (or, where there is no flat view, a copy) of at most PIECE_ELEMENTS entries each."""
    flat = tensor.reshape(-1)
    return flat.split(PIECE_ELEMENTS) if flat.numel() > PIECE_ELEMENTS else (flat,)


def norms(tensors):
    """(L2 norm of the finite entries of each tensor, {index: number of non-finite entries}); floats and ints."""
    import torch

    single, large = torch.float32, []
    if torch.float64 in {tensor.dtype for tensor in tensors}:
        found = [_wide_norm(tensor) for tensor in tensors]
    else:
        sizes = list(map(torch.Tensor.numel, tensors))
        large = [index for index, size in enumerate(sizes) if size > PIECE_ELEMENTS]
        whole = tensors if not large else [t for t, size in zip(tensors, sizes) if size <= PIECE_ELEMENTS]
        found = list(map(torch.Tensor.item, l2_norms(whole, single))) if whole else []
    for index in large:
        parts = l2_norms(list(pieces(tensors[index])), single)
        found.insert(index, math.hypot(*map(torch.Tensor.item, parts)))
    total, nonfinite = sum(found), {}
    if not (total < SAFE_LARGEST and min(found, default=1.0) > SAFE_SMALLEST):  # also when one is NaN
        for index, norm in enumerate(found):
            if not SAFE_SMALLEST < norm < SAFE_LARGEST:
                found[index], bad = exact_norm(tensors[index])
                if bad:
                    nonfinite[index] = bad
    return found, nonfinite


def _wide_norm(tensor):
    """A float64 norm; NaN where its squares might not fit, so that it is read again."""
    import torch

    norm = torch.linalg.vector_norm(tensor, dtype=torch.float64).item()
    return norm if 1e-140 < norm < 1e150 else math.nan


def table(tensors, scale=None, threshold=None):
    """Rows of wire.TENSOR_COLUMNS as one flat list, 8 floats a tensor; the last of them is NaN without a `threshold`.

    Shares and moments of an empty tensor are 0. `std` is that of the population.
    """
    scale = None if scale is None else float(scale)
    threshold = None if threshold is None else float(threshold)
    rows = [None] * len(tensors)
    for batch in small.batches(tensors):
        for index, row in zip(batch, small.table([tensors[index] for index in batch], scale, threshold)):
            rows[index] = row
    rows = [row or _row(tensor, scale, threshold) for row, tensor in zip(rows, tensors)]
    return list(itertools.chain.from_iterable(rows))


def _row(tensor, scale, threshold):
    import torch

    count = tensor.numel()
    if not count:
        return [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, math.nan if threshold is None else 0.0]
    if tensor.dtype is torch.float64:
        return exact_row(tensor, scale, threshold)
    largest = magnitude = total = squares = 0.0
    nonzero = kept = 0
    for part in pieces(tensor):
        piece = part.float() if scale is None else part.float() * scale
        size = piece.abs()
        peak = size.amax().item()
        if not peak < SAFE_LARGEST:  # also NaN
            return exact_row(tensor, scale, threshold)
        largest = max(largest, peak)
        magnitude += size.sum().item()
        total += piece.sum().item()
        norm = torch.linalg.vector_norm(piece).item()
        squares += norm * norm
        nonzero += int(torch.count_nonzero(piece))
        if threshold is not None:
            # what is larger stays, the rest becomes 0: half the time of counting a comparison
            kept += int(torch.count_nonzero(torch.threshold(size, threshold, 0.0)))
    mean = total / count
    variance = squares / count - mean * mean
    # Too small for float32 squares, or so far from zero that the difference of two nearly equal sums says little.
    if 0.0 < largest <= SAFE_SMALLEST or variance < 0.1 * squares / count:
        return exact_row(tensor, scale, threshold)
    lost = math.nan if threshold is None else (nonzero - kept) / nonzero if nonzero else 0.0
    spread = math.sqrt(max(0.0, variance))
    return [math.sqrt(squares), largest, magnitude / count, mean, spread, 1.0 - nonzero / count, 0.0, lost]


def histograms(tensors, scale=None):
    """int32[len(tensors), 64] in the buckets of wire.KIND_HISTOGRAMS.

    Counted from the exponent bits (12 ms for 10.5 M floats; torch.histc over the same takes 42 ms, frexp 30 ms).
    """
    import torch

    scale = None if scale is None else float(scale)
    result = torch.zeros(len(tensors), wire.HISTOGRAM_BUCKETS, dtype=torch.int64)
    done = set()
    for batch in small.batches(tensors):
        done.update(batch)
        result[batch] = _buckets(small.exponents([tensors[index] for index in batch], scale), 127)
    for index, tensor in enumerate(tensors):
        if index not in done and tensor.numel():
            result[index] = _buckets(*_exponents(tensor, scale))[0]
    return result.to(torch.int32)


def _exponents(tensor, scale):
    """(int64[1, codes]: how many entries have each exponent code, the bias of the code)."""
    import torch

    # type to read the bits as, distance of the exponent from bit 0, its bias
    layouts = {
        torch.float32: (torch.int32, 23, 127),
        torch.bfloat16: (torch.int16, 7, 127),
        torch.float64: (torch.int64, 52, 1023),
    }
    half = tensor.dtype not in layouts  # float16 reaches down to 2**-24 in its last bits: only as float32 has it all
    as_float = half or (scale is not None and tensor.dtype is not torch.float64)
    bits, shift, bias = layouts[torch.float32 if as_float else tensor.dtype]
    codes = torch.zeros(2 * bias + 2, dtype=torch.int64)
    for part in pieces(tensor):
        piece = part.float() if as_float else part
        if scale is not None:
            piece = piece * scale
        codes += torch.bincount((piece.contiguous().view(bits) >> shift) & (2 * bias + 1), minlength=2 * bias + 2)
    return codes.unsqueeze(0), bias


def _buckets(codes, bias):
    """int64[n, 64] from int64[n, 2 * bias + 2] counts of exponent codes; the highest code means Inf or NaN."""
    first = bias + wire.HISTOGRAM_FIRST_EXPONENT
    last = first + wire.HISTOGRAM_BUCKETS - 1
    buckets = codes[:, first : last + 1].clone()
    buckets[:, 0] += codes[:, :first].sum(1)
    buckets[:, -1] += codes[:, last + 1 : 2 * bias + 1].sum(1)
    return buckets
