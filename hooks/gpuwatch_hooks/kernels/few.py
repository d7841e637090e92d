"""Norms of a few CPU tensors, one by one, with as few kinds of operators as can be.

Beside a model that has just filled the caches, what counts is how many kinds of operators are called: the code of each has to
be fetched again, 5 to 10 us, where its second call takes 2. Two kinds take 77 us for the eight tensors of a small network;
joining them, squaring and summing by segments, which is best for many, takes 250.
"""

import math

#: Entries that one float32 sum takes: torch adds their squares up in a few sums, which stay within 2.5e-6 even of equal ones.
ROW_ENTRIES = 4096


class Few:
    """How to read tensors of these shapes and types (none of them float64).

    For each: the dimensions over which rows are summed first, None where it is summed at once, () where it has no such
    dimensions and is cut into rows; and the type to read it as, None for its own.
    """

    __slots__ = ("_norm", "_ways")

    def __init__(self, shapes, types):
        import torch

        kinds = [None if kind is torch.float32 else torch.float32 for kind in types]
        self._norm = torch.linalg.vector_norm
        self._ways = list(zip(map(_dimensions, shapes), kinds))

    def norms(self, tensors):
        """The norms, floats. Raises RuntimeError or IndexError where these are other tensors than it was made for."""
        norm, found = self._norm, []
        for tensor, (dimensions, kind) in zip(tensors, self._ways):
            if not tensor.is_cpu:
                raise RuntimeError("not on the CPU")
            if dimensions is None:
                found.append(norm(tensor, dtype=kind).item())
            elif dimensions:
                found.append(norm(norm(tensor, dim=dimensions, dtype=kind)).item())
            else:
                found.append(_by_rows(tensor))
        return found


def _dimensions(shape):
    size = math.prod(shape)
    if size <= ROW_ENTRIES:
        return None
    for first in range(1, len(shape)):
        rows = math.prod(shape[:first])
        if rows <= ROW_ENTRIES and size // rows <= ROW_ENTRIES:
            return tuple(range(first, len(shape)))
    return ()


def _by_rows(tensor):
    import torch

    norm, flat = torch.linalg.vector_norm, tensor.reshape(-1)
    whole = flat.numel() // ROW_ENTRIES * ROW_ENTRIES
    rows = norm(flat[:whole].view(-1, ROW_ENTRIES), dim=1, dtype=torch.float32)
    rest = norm(flat[whole:], dtype=torch.float32).item() if whole < flat.numel() else 0.0
    return math.hypot(norm(rows, dtype=torch.float64).item(), rest)
