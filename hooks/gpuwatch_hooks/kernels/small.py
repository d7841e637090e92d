"""Many small CPU tensors at once: biases and gains are half of a model's tensors and would cost an operator call each.

They are joined into one float64 vector and reduced by segments: 0.4 ms for 150 tensors of 16 to 256 entries, where eight
operators a tensor take 4 ms. Float64 also makes every float32, bfloat16 and float16 entry exact, squares included.
"""

import math

#: Above this a tensor is better read by itself (segment sums take 0.7 to 3 ns an entry).
SMALL_ENTRIES = 2048
#: Entries that are joined at a time: 2 MiB of float64 a temporary copy.
_JOINED_ENTRIES = 1 << 18


def batches(tensors):
    """Lists of indices of the small tensors among `tensors`, each list to be read together. Float64 is never among them."""
    import torch

    batch, size = [], 0
    for index, tensor in enumerate(tensors):
        count = tensor.numel()
        if not 0 < count <= SMALL_ENTRIES or tensor.dtype is torch.float64:
            continue
        if size + count > _JOINED_ENTRIES:
            yield batch
            batch, size = [], 0
        batch.append(index)
        size += count
    if batch:
        yield batch


def table(tensors, scale=None, threshold=None):
    """Rows of wire.TENSOR_COLUMNS (lists of 8 floats) of small tensors, none of them empty."""
    groups = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault(tensor.numel(), []).append(index)
    if 4 * len(groups) > len(tensors):
        return _by_segments(tensors, scale, threshold)
    rows = [None] * len(tensors)
    for size, indices in groups.items():
        some = [tensors[index] for index in indices]
        found = _as_a_matrix(some, size, scale, threshold) or _by_segments(some, scale, threshold)
        for index, row in zip(indices, found):
            rows[index] = row
    return rows


def _as_a_matrix(tensors, size, scale, threshold):
    """The rows of tensors of one size, which most models' are: row sums take a tenth of segment sums. None: not all finite."""
    import torch

    flat, _ = _joined(tensors)
    values = flat.view(-1, size)
    if scale is not None:
        values = values * scale
    total = values.sum(1)
    if not math.isfinite(total.sum().item()):
        return None
    norm, sizes = torch.linalg.vector_norm, values.abs()
    magnitude, peak, length = sizes.sum(1), sizes.amax(1), norm(values, dim=1)
    mean = total / size
    spread = norm(values - mean.unsqueeze(1), dim=1) / math.sqrt(size)
    kept = None if threshold is None else torch.threshold(sizes, threshold, 0.0).sign_().sum(1)
    nonzero = sizes.sign_().sum(1)
    lost = torch.full_like(mean, math.nan) if kept is None else (nonzero - kept) / nonzero.clamp(min=1.0)
    shares = (size - nonzero) / size
    columns = (length, peak, magnitude / size, mean, spread, shares, torch.zeros_like(mean), lost)
    return torch.stack(columns, 1).tolist()


def _by_segments(tensors, scale, threshold):
    import torch

    flat, lengths = _joined(tensors)
    clean = torch.nan_to_num(flat, nan=0.0, posinf=0.0, neginf=0.0)
    bad = (clean != flat).double()  # NaN differs from everything
    if scale is not None:
        clean = clean * scale
    size = clean.abs()
    nonzero = size > 0.0

    def sums(values):
        return torch.segment_reduce(values, "sum", lengths=lengths)

    counts = lengths.double()
    nonfinite, filled = sums(bad), sums(nonzero.double())
    finite = (counts - nonfinite).clamp(min=1.0)
    mean = sums(clean) / finite
    centred = (clean - torch.repeat_interleave(mean, lengths)) * (1.0 - bad)
    lost = torch.full_like(mean, float("nan"))
    if threshold is not None:
        lost = sums((nonzero & (size <= threshold)).double()) / filled.clamp(min=1.0)
    columns = (
        sums(clean.square()).sqrt(),
        torch.segment_reduce(size, "max", lengths=lengths),
        sums(size) / finite,
        mean,
        (sums(centred.square()) / finite).sqrt(),
        (counts - nonfinite - filled) / counts,
        nonfinite,
        lost,
    )
    return torch.stack(columns, 1).tolist()


def exponents(tensors, scale=None):
    """int64[len(tensors), 256]: how many entries have each float32 exponent code (0: zeros and denormals, 255: not finite)."""
    import torch

    flat, lengths = _joined(tensors, torch.float32)
    if scale is not None:
        flat = flat * scale
    rows = torch.repeat_interleave(torch.arange(0, 256 * len(tensors), 256), lengths)
    codes = (flat.view(torch.int32) >> 23) & 255
    return torch.bincount(rows + codes, minlength=256 * len(tensors)).view(-1, 256)


def _joined(tensors, dtype=None):
    import torch

    dtype = dtype or torch.float64
    kinds = {tensor.dtype for tensor in tensors}
    flat = [tensor.reshape(-1) if len(kinds) == 1 else tensor.reshape(-1).to(dtype) for tensor in tensors]
    return torch.cat(flat).to(dtype), torch.tensor([len(part) for part in flat])
