"""Statistics of CPU tensors: a cheap pass that always runs, and dear ones for the steps that are sampled.

The always-on pass (cpu_norms.py) is one read. The table is seven operators over pieces that stay in the cache, into two
buffers that are kept: 5.1 times one torch.sum over 10.5 M floats in 147 tensors. Two operators that look cheap are not:
torch.count_nonzero takes ten times as long on entries of which a third are zeros (its branch is mispredicted) as on entries
without, where a sum of signs takes the same on both; isfinite().all() takes 11 times a whole pass.
"""

import itertools
import math

from .. import wire
from . import small
from .cpu_norms import norms
from .exact import SAFE_LARGEST, SAFE_SMALLEST, exact_row
from .few import ROW_ENTRIES

__all__ = ["histograms", "norms", "table"]

#: Entries a piece has: 512 KiB of float32 and a buffer of the same size stay in a cache; a twelfth faster than half of it.
PIECE_ELEMENTS = 131072

_buffers = []  # two of PIECE_ELEMENTS float32: made once, since fresh ones would cost page faults


def pieces(tensor):
    """Flat views (or, where there is no flat view, a copy) of at most PIECE_ELEMENTS entries each."""
    flat = tensor.reshape(-1)
    return flat.split(PIECE_ELEMENTS) if flat.numel() > PIECE_ELEMENTS else (flat,)


def table(tensors, scale=None, threshold=None):
    """Rows of wire.TENSOR_COLUMNS as one flat list, 8 floats a tensor; the last of them is NaN without a `threshold`.

    Shares and moments of an empty tensor are 0. `std` is that of the population.
    """
    import torch

    if not _buffers:
        _buffers.extend(torch.empty(PIECE_ELEMENTS, dtype=torch.float32, device="cpu") for _ in range(2))
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
    largest = magnitude = total = nonzero = kept = 0.0
    norms_of_rows = []
    for part in pieces(tensor):
        piece, entries = part, part.numel()
        size = _buffers[0][:entries]
        if scale is not None or part.dtype is not torch.float32:
            piece = _buffers[1][:entries].copy_(part)
            if scale is not None:
                piece.mul_(scale)
        torch.abs(piece, out=size)
        peak = size.amax().item()
        if not peak < SAFE_LARGEST:  # also NaN
            return exact_row(tensor, scale, threshold)
        largest = max(largest, peak)
        total += piece.sum().item()
        magnitude += size.sum().item()
        norms_of_rows.append(_row_norms(size))
        if threshold is not None:  # what is larger stays, the rest becomes 0
            kept += torch.threshold(size, threshold, 0.0).sign_().sum().item()
        nonzero += size.sign_().sum().item()
    squares = torch.cat(norms_of_rows).double().square_().sum().item()
    mean = total / count
    variance = squares / count - mean * mean
    # Too small for float32 squares, or so far from zero that the difference of two nearly equal sums says little.
    if 0.0 < largest <= SAFE_SMALLEST or variance < 0.1 * squares / count:
        return exact_row(tensor, scale, threshold)
    lost = math.nan if threshold is None else (nonzero - kept) / nonzero if nonzero else 0.0
    spread = math.sqrt(max(0.0, variance))
    return [math.sqrt(squares), largest, magnitude / count, mean, spread, 1.0 - nonzero / count, 0.0, lost]


def _row_norms(size):
    """Norms of rows of ROW_ENTRIES entries: torch's norm of 65,536 equal entries at once is off by 1.7e-5."""
    import torch

    if size.numel() % ROW_ENTRIES:
        return torch.stack([torch.linalg.vector_norm(part) for part in size.split(ROW_ENTRIES)])
    return torch.linalg.vector_norm(size.view(-1, ROW_ENTRIES), dim=1)


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
