"""The always-on pass over CPU tensors: their L2 norms and how many entries are not finite, from one read.

A few tensors are read one by one (`few.py`). Of many, the small ones are joined, and what is joined and the norms of the large
ones' rows are summed by segments in float64 (20 us for 150 small tensors, where torch._foreach_norm takes 163). Large ones
are one operator each: 1.47 ms for 10.5 M floats on one core, of which nearly all is the memory's own time (torch.sum over the
same: 1.2). Only a tensor whose norm is not finite, or so small or large that float32 squares lose it, is read again, exactly
(`exact.py`).
"""

import collections
import functools
import math
import operator

from .exact import SAFE_LARGEST, SAFE_SMALLEST, exact_norm
from .few import ROW_ENTRIES, Few
from .small import SMALL_ENTRIES

#: Up to so many tensors are read one by one.
FEW_TENSORS = 16
#: Small tensors' entries that are joined at a time.
_JOINED_ENTRIES = 1 << 18
_MAX_PLANS = 8
_plans = collections.OrderedDict()  # (sizes, type of the first) -> _Plan


def norms(tensors, sizes=None):
    """(L2 norm of the finite entries of each tensor, {index: number of non-finite entries}); floats and ints.

    `sizes`: their numbers of entries as a tuple, where they are known already. Raises RuntimeError for tensors that are
    not of a real floating type, RuntimeError for those that are not strided or not on the CPU.
    """
    plan = _plan(tensors, sizes or tuple([tensor.numel() for tensor in tensors]))
    if plan.few is not None:
        try:
            found = plan.few.norms(tensors)
        except IndexError:  # fewer dimensions than those before had
            plan.few = Few([tensor.shape for tensor in tensors], plan.types)
            found = plan.few.norms(tensors)
    else:
        found = _norms_of_many(plan, tensors)
    smallest = min(found if plan.all_narrow else [found[index] for index in plan.narrow], default=1.0)
    if not sum(found) < SAFE_LARGEST or smallest <= SAFE_SMALLEST:  # also where one is NaN
        return found, _read_again(plan, tensors, found)
    return found, {}


def _norms_of_many(plan, tensors):
    for index in plan.narrow:
        if not tensors[index].is_cpu:
            raise RuntimeError("not all on the CPU")  # torch.cat says so by itself
    if len(plan.batches) == 1 and not plan.doubles:
        return plan.batches[0].norms(tensors)
    found = [0.0] * len(tensors)
    for batch in plan.batches:
        for index, norm in zip(batch.order, batch.norms(tensors)):
            found[index] = norm
    for index in plan.doubles:
        found[index] = _double_norm(tensors[index])
    return found


def _plan(tensors, sizes):
    """The plan for tensors of these sizes. Where many were all float32, a type that changes later is not asked for: torch.cat
    turns halves into float32 and refuses complex numbers, and only a double loses what lies beyond float32's own digits.
    """
    key = (sizes, tensors[0].dtype)
    plan = _plans.get(key)
    if plan is None or (plan.types is not None and plan.types != [tensor.dtype for tensor in tensors]):
        plan = _plans[key] = _Plan(tensors, sizes, [tensor.dtype for tensor in tensors])
        if len(_plans) > _MAX_PLANS:
            _plans.popitem(last=False)
    return plan


def _read_again(plan, tensors, found):
    """Put exact norms in the place of those that float32 got wrong; {index: number of non-finite entries}."""
    nonfinite, narrow = {}, set(plan.narrow)
    for index, norm in enumerate(found):
        safe = SAFE_SMALLEST < norm < SAFE_LARGEST
        if not (safe or (index not in narrow and math.isfinite(norm))):
            found[index], bad = exact_norm(tensors[index])
            if bad:
                nonfinite[index] = bad
    return nonfinite


class _Plan:
    """Which tensors of these sizes and types are read together, and how: `few`, or in `batches` and `doubles` by themselves.

    `narrow`: indices of those that are summed up in float32, or whose squares may leave float64.
    """

    __slots__ = ("all_narrow", "batches", "doubles", "few", "narrow", "types")

    def __init__(self, tensors, sizes, types):
        import torch

        if not {torch.float16, torch.bfloat16, torch.float32, torch.float64}.issuperset(types):
            raise RuntimeError("not of a real floating type")
        self.types, self.few, self.all_narrow = types, None, False
        self.doubles = [index for index, kind in enumerate(types) if kind is torch.float64]
        if len(sizes) <= FEW_TENSORS and not self.doubles:
            self.few = Few([tensor.shape for tensor in tensors], types)
            self.narrow = [index for index, size in enumerate(sizes) if size]
            self.all_narrow = len(self.narrow) == len(sizes)
            return
        if set(types) == {torch.float32}:
            self.types = None
        large = [i for i, size in enumerate(sizes) if size > SMALL_ENTRIES and types[i] is not torch.float64]
        self.narrow = large + self.doubles
        apart, batch, entries = set(self.narrow), [], 0
        self.batches = []
        for index in [index for index in range(len(sizes)) if index not in apart]:
            if batch and entries + sizes[index] > _JOINED_ENTRIES:
                self.batches.append(_Batch(batch, [], sizes, types))
                batch, entries = [], 0
            batch.append(index)
            entries += sizes[index]
        if batch and large and {types[index] for index in batch} != {torch.float32}:  # rows' norms are float32
            self.batches.append(_Batch(batch, [], sizes, types))
            batch = []
        if batch or large:
            self.batches.append(_Batch(batch, large, sizes, types))


class _Batch:
    """Small tensors and the rows of large ones, summed together, with the buffers for it: fresh ones would cost page faults."""

    __slots__ = ("_in_order", "_joined", "_large", "_lengths", "_of_small", "_small", "_squares", "order")

    def __init__(self, small, large, sizes, types):
        import torch

        shapes = [rows_of(sizes[index]) for index in large]
        rows = [count + (count * width < sizes[index]) for index, (count, width) in zip(large, shapes)]
        entries, kinds = sum(sizes[index] for index in small), {types[index] for index in small}
        kind = kinds.pop() if len(kinds) == 1 else torch.float32
        self.order = small + large
        whole = self.order == list(range(len(sizes)))  # already in order
        places = sorted(range(len(self.order)), key=self.order.__getitem__)
        self._in_order = None if whole or len(self.order) < len(sizes) else operator.itemgetter(*places)
        self._lengths = torch.tensor([sizes[index] for index in small] + rows, dtype=torch.int64, device="cpu")
        self._joined = torch.empty(entries + sum(rows), dtype=kind, device="cpu")
        self._squares = torch.empty(entries + sum(rows), dtype=torch.float64, device="cpu")
        self._small, self._of_small = small, self._joined[:entries]
        cells = self._joined[entries:].split(rows) if large else ()
        self._large = list(zip(large, shapes, cells))

    def norms(self, tensors):
        """The norms of all tensors, where the batch holds all; else of its own, in their `order`."""
        import torch

        if len(self._small) == len(tensors):
            _join(tensors, self._joined)
        elif self._small:
            _join([tensors[index] for index in self._small], self._of_small)
        norm = torch.linalg.vector_norm
        for index, shape, cells in self._large:
            count, width = shape
            if len(cells) == count:
                norm(tensors[index].reshape(shape), dim=1, dtype=torch.float32, out=cells)
            else:
                flat = tensors[index].reshape(-1)
                norm(flat[: count * width].view(shape), dim=1, dtype=torch.float32, out=cells[:count])
                norm(flat[count * width :], dtype=torch.float32, out=cells[count])
        squares = self._squares.copy_(self._joined).square_()
        found = torch.segment_reduce(squares, "sum", lengths=self._lengths, unsafe=True).sqrt_().tolist()
        return found if self._in_order is None else list(self._in_order(found))


@functools.lru_cache(maxsize=1024)
def rows_of(size):
    """(rows, entries of a row) to read `size` entries in; what is left of `size` is a shorter row."""
    width = next((width for width in range(ROW_ENTRIES, ROW_ENTRIES // 4, -1) if size % width == 0), ROW_ENTRIES)
    return size // width, width


def _join(tensors, joined):
    import torch

    if tensors[0].dim() != 1 or not _cat(tensors, joined):
        torch.cat([tensor.reshape(-1) for tensor in tensors], out=joined)


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


def _double_norm(tensor):
    import torch

    value = torch.linalg.vector_norm(tensor).item()
    return value if 1e-140 < value < 1e150 else math.nan  # its squares might not fit: to be read again
