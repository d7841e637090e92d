"""How far the weights move in an optimizer step, by the fused kernel: one launch before it, two after.

`keep` copies the followed entries of all weights into one buffer; `compare` reads the weights again and takes the differences
in registers. By torch's operators the same is a copy, a subtraction and a norm of each tensor: some hundred launches.
"""

import collections

from . import cuda_updates
from .chunks import Layout
from .plan import MAX_PLANS, Plan

#: What `keep` leaves for `compare`: the layout on the device, its key, and the buffer.
Kept = collections.namedtuple("Kept", ("plan", "key", "saved"))


class Followed:
    """Belongs to a Fused; see there for `device`. Used by one thread at a time."""

    def __init__(self, fused, device):
        self._fused, self._device = fused, device
        self._plans = collections.OrderedDict()

    def keep(self, tensors, strides):
        """Queue a copy of every `strides[i]`-th entry of each tensor, in memory's order: a Kept; None if one does not fit."""
        if not tensors or not all(map(self._fused.fits, tensors)):
            return None
        key = self._key(tensors, strides)
        plan = self._plans.get(key)
        if plan is None:
            _, numels, dtypes, strides = key
            followed = [-(-numel // stride) for numel, stride in zip(numels, strides)]
            kinds = [self._fused.kind(dtype) for dtype in dtypes]
            plan = self._plans[key] = Plan(self._device, Layout(followed, kinds, cuda_updates.CHUNK_ENTRIES, strides))
            if len(self._plans) > MAX_PLANS:
                self._plans.popitem(last=False)
        plan.point_at(tensors)
        layout = plan.layout
        saved = self._device.empty(max(1, 4 * cuda_updates.CHUNK_ENTRIES * layout.chunks))
        if layout.chunks:
            self._device.launch(cuda_updates.KEEP, layout.chunks, (*plan.addresses_of(), saved.data_ptr()))
        return Kept(plan, key, saved)

    def compare(self, kept, tensors):
        """Queue the comparison of the tensors with what was kept: uint8 tensor on the device for `decode`.

        None where they are no longer the tensors that were kept, or the current stream is another one.
        """
        if not all(map(self._fused.fits, tensors)) or self._key(tensors, kept.key[3]) != kept.key:
            return None
        plan, device = kept.plan, self._device
        layout = plan.layout
        plan.point_at(tensors)
        answer_bytes = cuda_updates.ROW_BYTES * layout.count
        memory = device.empty(answer_bytes + cuda_updates.CHANGE_BYTES * layout.chunks)
        rows = memory.data_ptr()
        changes = rows + answer_bytes
        pointers, table, chunks = plan.addresses_of()
        if layout.chunks:
            device.launch(cuda_updates.COMPARE, layout.chunks, (pointers, table, chunks, kept.saved.data_ptr(), changes))
        device.launch(cuda_updates.CHANGES, layout.count, (table, changes, rows))
        return memory[:answer_bytes]

    def _key(self, tensors, strides):
        return (
            self._device.stream(),
            tuple([tensor.numel() for tensor in tensors]),
            tuple([tensor.dtype for tensor in tensors]),
            tuple(strides),
        )


def decode(answer):
    """(norms of the updates, norms of the weights before, counts of non-finite entries), a number a tensor, from the bytes."""
    from array import array

    rows = array("d")
    rows.frombytes(answer)
    return rows[0::4], rows[1::4], rows[2::4]
