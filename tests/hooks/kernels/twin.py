"""The statistics once more: slowly, in Python's own floats, with exact sums, sharing no code with the kernels."""

from __future__ import annotations

import math

from gpuwatch_hooks import wire


def values(tensor):
    """All entries as Python floats; complex ones as two."""
    import torch

    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return [float(x) for x in tensor.detach().double().reshape(-1).tolist()]


def row(entries, scale=1.0, threshold=None):
    """{column: value} of wire.TENSOR_COLUMNS for a list of floats."""
    finite = [x * scale for x in entries if math.isfinite(x)]
    bad = len(entries) - len(finite)
    if not finite:
        zero = dict.fromkeys(wire.TENSOR_COLUMNS, 0.0)
        return zero | {"nonfinite_count": float(bad)} | ({} if threshold is not None else {"underflow_ratio": math.nan})
    unit = max(map(abs, finite)) or 1.0
    mean = math.fsum(x / unit for x in finite) / len(finite)
    nonzero = [x for x in finite if x != 0.0]
    return {
        "norm": unit * math.sqrt(math.fsum((x / unit) ** 2 for x in finite)),
        "absmax": max(map(abs, finite)),
        "mean_abs": unit * math.fsum(abs(x / unit) for x in finite) / len(finite),
        "mean": unit * mean,
        "std": unit * math.sqrt(math.fsum((x / unit - mean) ** 2 for x in finite) / len(finite)),
        "zero_ratio": (len(finite) - len(nonzero)) / len(entries),
        "nonfinite_count": float(bad),
        "underflow_ratio": math.nan
        if threshold is None
        else sum(abs(x) <= threshold for x in nonzero) / len(nonzero)
        if nonzero
        else 0.0,
    }


def histogram(entries, scale=1.0):
    """64 counts by frexp, as the wire defines the buckets."""
    counts = [0] * wire.HISTOGRAM_BUCKETS
    for entry in entries:
        if math.isfinite(entry):
            scaled = abs(entry * scale)
            exponent = math.frexp(scaled)[1] - 1 if scaled else -5000
            counts[min(max(exponent - wire.HISTOGRAM_FIRST_EXPONENT, 0), wire.HISTOGRAM_BUCKETS - 1)] += 1
    return counts
