"""The always-on pass over CPU tensors: their L2 norms and how many entries are not finite, from one read.

Small tensors are joined and summed by segments in float64: 21 us for 150 of them, where torch._foreach_norm takes 163 (it
calls an operator for each). Large ones are read as rows of ROW_ENTRIES entries by one operator each: 1.65 ms for 10.5 M
floats on one core, of which nearly all is the memory's own time (one torch.sum over the same: 1.2 to 1.4 ms). Only a tensor
whose norm is not finite, or so small or large that float32 squares lose it, is read again, exactly (`exact.py`).
"""

import collections
import math

from .exact import SAFE_LARGEST, SAFE_SMALLEST, exact_norm
from .small import SMALL_ENTRIES

#: Entries of a row: torch adds the squares of one up in a few float32 sums, which stay within 1.4e-6 even of equal entries.
ROW_ENTRIES = 4096
#: Small tensors' entries that are joined at a time.
_JOINED_ENTRIES = 1 << 18
_MAX_PLANS = 8
_plans = collections.OrderedDict()  # (sizes, type of the first) -> _Plan


def norms(tensors, sizes=None):
    """(L2 norm of the finite entries of each tensor, {index: number of non-finite entries}); floats and ints.

    `sizes`: their numbers of entries as a tuple, where they are known already. Raises RuntimeError for tensors that are
    not of a real floating type, RuntimeError for those that are not strided or not on the CPU.
    """
    import torch

    sizes = sizes or tuple(map(torch.Tensor.numel, tensors))
    plan = _plan(tensors, sizes)
    if len(plan.batches) == 1 and not plan.large:
        found = _joined_norms(plan.batches[0], tensors)
    else:
        found = [0.0] * len(tensors)
        if not all(tensors[index].is_cpu for index in plan.large):
            raise RuntimeError("not all on the CPU")  # torch.cat says so by itself
        for batch in plan.batches:
            for index, norm in zip(batch.indices, _joined_norms(batch, [tensors[index] for index in batch.indices])):
                found[index] = norm
        for index in plan.large:
            found[index] = _large_norm(tensors[index])
    if not sum(found) < SAFE_LARGEST or any(found[index] <= SAFE_SMALLEST for index in plan.large):  # also where one is NaN
        return found, _read_again(plan, tensors, found)
    return found, {}


def _plan(tensors, sizes):
    """The plan for tensors of these sizes. Where all were float32 once, a type that changes later is not asked for: torch.cat
    turns halves into float32 and refuses complex numbers, and only a double loses what lies beyond float32's own digits.
    """
    import torch

    key = (sizes, tensors[0].dtype)
    plan = _plans.get(key)
    if plan is None or (plan.types is not None and plan.types != tuple(map(torch.Tensor.dtype.__get__, tensors))):
        plan = _plans[key] = _Plan(sizes, tuple(map(torch.Tensor.dtype.__get__, tensors)))
        if len(_plans) > _MAX_PLANS:
            _plans.popitem(last=False)
    return plan


def _read_again(plan, tensors, found):
    """Put exact norms in the place of those that float32 got wrong; {index: number of non-finite entries}."""
    nonfinite = {}
    for index, norm in enumerate(found):
        safe = SAFE_SMALLEST < norm < SAFE_LARGEST
        if not (safe or (index in plan.joined and math.isfinite(norm))):
            found[index], bad = exact_norm(tensors[index])
            if bad:
                nonfinite[index] = bad
    return nonfinite


class _Plan:
    """Which tensors of these sizes and types are read together."""

    def __init__(self, sizes, types):
        import torch

        real = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
        if not real.issuperset(types):
            raise RuntimeError("not of a real floating type")
        self.types = None if set(types) == {torch.float32} else types
        self.large = [i for i, size in enumerate(sizes) if size > SMALL_ENTRIES or types[i] is torch.float64]
        few = set(self.large)
        small = [i for i in range(len(sizes)) if i not in few]
        self.joined = frozenset(small)
        self.batches, batch, entries = [], [], 0
        for index in small:
            if batch and entries + sizes[index] > _JOINED_ENTRIES:
                self.batches.append(_Batch(batch, sizes, types))
                batch, entries = [], 0
            batch.append(index)
            entries += sizes[index]
        if batch:
            self.batches.append(_Batch(batch, sizes, types))


class _Batch:
    """Small tensors to be joined, with the buffers for it: fresh ones at every step would cost page faults."""

    __slots__ = ("indices", "joined", "lengths", "squares")

    def __init__(self, indices, sizes, types):
        import torch

        self.indices = indices
        self.lengths = torch.tensor([sizes[index] for index in indices], dtype=torch.int64, device="cpu")
        entries, kinds = sum(sizes[index] for index in indices), {types[index] for index in indices}
        kind = kinds.pop() if len(kinds) == 1 else torch.float32
        self.joined = torch.empty(entries, dtype=kind, device="cpu")
        self.squares = torch.empty(entries, dtype=torch.float64, device="cpu")


def _joined_norms(batch, tensors):
    import torch

    if tensors[0].dim() != 1 or not _cat(tensors, batch.joined):
        torch.cat([tensor.reshape(-1) for tensor in tensors], out=batch.joined)
    squares = batch.squares.copy_(batch.joined).square_()
    return torch.segment_reduce(squares, "sum", lengths=batch.lengths, unsafe=True).sqrt_().tolist()


def _cat(vectors, joined):
    """Join them; False where they are not all vectors, which costs less to find out than to ask each of them."""
    import torch

    try:
        torch.cat(vectors, out=joined)
    except TypeError as error:  # complex numbers
        raise RuntimeError(str(error)) from None
    except RuntimeError:
        return False
    return True


def _large_norm(tensor):
    import torch

    norm = torch.linalg.vector_norm
    if tensor.dtype is torch.float64:
        value = norm(tensor).item()
        return value if 1e-140 < value < 1e150 else math.nan  # its squares might not fit: to be read again
    flat = tensor.reshape(-1)
    whole = flat.numel() // ROW_ENTRIES * ROW_ENTRIES
    if whole < flat.numel():
        rest = norm(flat[whole:], dtype=torch.float32).item()
        if not whole:
            return rest
        flat = flat[:whole]
    else:
        rest = 0.0
    rows = norm(flat.view(-1, ROW_ENTRIES), dim=1, dtype=torch.float32)
    return math.hypot(norm(rows, dtype=torch.float64).item(), rest)
