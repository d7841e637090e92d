"""Exact statistics of one CPU tensor, for the few that float32 sums would get wrong.

Float64 squares hold every float32 from 1e-45 to 3e38. Entries are divided by the largest magnitude first, so that float64
tensors neither vanish nor overflow either. Three times as dear as the cheap pass: only for tensors that need it.
"""

import math

#: A float32 L2 norm between these is right: squares of the entries that matter are neither denormal nor infinite.
SAFE_SMALLEST, SAFE_LARGEST = 1e-14, 1e17

_PIECE_ELEMENTS = 65536


def _finite_pieces(tensor, scale):
    """Per piece: (float64 copy with zeros for NaN and Inf, number of those). Scaled where there is a scale."""
    import torch

    for piece in tensor.reshape(-1).split(_PIECE_ELEMENTS):
        clean = torch.nan_to_num(piece, nan=0.0, posinf=0.0, neginf=0.0).double()
        yield (clean if scale is None else clean * scale), _nonfinite(piece)


def exact_norm(tensor):
    """(L2 norm over the finite entries, number of non-finite entries) of a real CPU tensor of any floating type.

    A run that has gone to NaN comes here with every tensor at every step: what can stays in float32 (13 ms for 10.5 M NaN).
    """
    import torch

    norms, bad = [], 0
    for piece in tensor.reshape(-1).split(_PIECE_ELEMENTS):
        norm, clean = _norm(piece), piece
        if not math.isfinite(norm):
            count = _nonfinite(piece)
            if count:
                bad += count
                clean = torch.nan_to_num(piece, nan=0.0, posinf=0.0, neginf=0.0)
                norm = _norm(clean)
        if not SAFE_SMALLEST < norm < SAFE_LARGEST and clean.numel():
            unit = clean.abs().amax().item()
            norm = unit * _norm(_divided(clean.double(), unit)) if unit else 0.0
        norms.append(norm)
    return math.hypot(*norms), bad


def _norm(piece):
    """The norm as the type's own squares have it; Inf where those of a float64 would not fit."""
    import torch

    if piece.dtype is torch.float64:
        norm = torch.linalg.vector_norm(piece).item()
        return norm if 1e-140 < norm < 1e150 else math.inf
    return torch.linalg.vector_norm(piece, dtype=torch.float32).item()


def _nonfinite(piece):
    """How many entries are NaN or Inf: x - x is zero for all others (22 us a piece; comparing takes 50, isfinite 80)."""
    import torch

    return int(torch.count_nonzero(piece - piece))


def exact_row(tensor, scale=None, threshold=None):
    """One row of wire.TENSOR_COLUMNS (8 floats) over the finite entries; two passes, for the deviation from the mean."""
    import torch

    count = tensor.numel()
    unit, bad, zeros, lost = 0.0, 0, 0, 0
    for piece, nonfinite in _finite_pieces(tensor, scale):
        size = piece.abs()
        unit = max(unit, size.amax().item())
        bad += nonfinite
        zeros += piece.numel() - nonfinite - int(torch.count_nonzero(piece))
        if threshold is not None:
            lost += int(torch.count_nonzero((size <= threshold) & (size > 0.0)))
    finite = count - bad
    nonzero = finite - zeros
    share = math.nan if threshold is None else lost / nonzero if nonzero else 0.0
    if unit == 0.0:
        return [0.0, 0.0, 0.0, 0.0, 0.0, zeros / count, float(bad), share]
    squares = magnitude = total = 0.0
    for piece, _ in _finite_pieces(tensor, scale):
        ratio = _divided(piece, unit)
        squares += ratio.square().sum().item()
        magnitude += ratio.abs().sum().item()
        total += ratio.sum().item()
    mean = total / finite
    deviation = 0.0
    for piece, nonfinite in _finite_pieces(tensor, scale):
        # entries that were not finite count as zero here: take their share of the squares out again
        deviation += (_divided(piece, unit) - mean).square().sum().item() - nonfinite * mean * mean
    spread = math.sqrt(max(0.0, deviation) / finite)
    return [
        unit * math.sqrt(squares),
        unit,
        unit * (magnitude / finite),
        unit * mean,
        unit * spread,
        zeros / count,
        float(bad),
        share,
    ]


def _divided(piece, unit):
    """piece / unit without losing either to the limits of float64."""
    if 1e-300 < unit < 1e300:
        return piece / unit
    power = math.frexp(unit)[1]
    half = power // 2
    return piece * math.ldexp(1.0, -half) * math.ldexp(1.0, half - power) / math.frexp(unit)[0]
