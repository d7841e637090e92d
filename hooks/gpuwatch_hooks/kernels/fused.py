"""One pass over many tensors on a device: every column of wire.TENSOR_COLUMNS, and a histogram where it is asked for.

What differs between a real device and the tests' emulation of one is behind a small object (cuda_device.py is the real one):

    processors                                   multiprocessors of the device
    stream() -> int                              the handle of the current stream
    empty(bytes) -> uint8 tensor on the device, of the caching allocator, to be used in the order of the current stream
    upload(target, bytes)                        copy into such a tensor, queued on the current stream, from pinned memory
    clear(tensor)                                zero it, queued likewise
    launch(kernel, blocks, arguments)            queue a kernel, by name; arguments are addresses, 0 for none

Everything is queued on the stream of the moment, behind the work that made the tensors and before whatever frees or reuses
them; nothing waits. The addresses travel to the device only when they have changed, everything else only for a new layout.
"""

import collections

from . import cuda_source
from .chunks import MAX_ENTRIES, Layout, chunk_entries, kind_of
from .followed import Followed
from .plan import MAX_PLANS, Plan

_MAX_SHAPES = 4096


class Fused:
    """The kernel on one device. Used by one thread at a time."""

    def __init__(self, device, facts, errors=()):
        import torch

        self.errors = errors  # exceptions of the device that mean: not with this kernel
        self.facts = facts  # what doctor and the run's facts say about it
        self.followed = Followed(self, device)
        self._device = device
        self._plans = collections.OrderedDict()
        self._kinds = {}  # torch dtype -> kind or None
        self._dense_shapes = {}
        self._address, self._numel = torch.Tensor.data_ptr, torch.Tensor.numel
        self._dtype, self._contiguous = torch.Tensor.dtype.__get__, torch.Tensor.is_contiguous

    def fits(self, tensor):
        """Whether the kernel can read this dense tensor of its device: fp32, bf16 or fp16 without gaps, in any order."""
        return self.kind(tensor.dtype) is not None and tensor.numel() <= MAX_ENTRIES and self._gapless(tensor)

    def measure(self, tensors, scale=None, threshold=None, histograms=False, sizes=None):
        """uint8 tensor on the device with the answer for `tensors` (see chunks.decode), or None where one does not fit.

        `scale`, `threshold`: 0-d float64 tensors on the same device, or None. `sizes`: the tensors' numbers of entries as a
        tuple, where they are known already. The tensors need to live until this returns.
        """
        plan = self._plan(sizes or tuple(map(self._numel, tensors)), tuple(map(self._dtype, tensors)))
        if plan is None or not (all(map(self._contiguous, tensors)) or all(map(self._gapless, tensors))):
            return None
        plan.point_at(tensors, self._address)
        return self._queue(plan, scale, threshold, histograms)

    @property
    def uploads(self):
        """How often addresses were sent."""
        return sum(plan.uploads for plan in self._plans.values() if plan is not None)

    def _queue(self, plan, scale, threshold, histograms):
        layout, device = plan.layout, self._device
        answer_bytes, rows_bytes = layout.answer_bytes(histograms), layout.answer_bytes(False)
        memory = device.empty(answer_bytes + layout.partial_bytes)
        rows = memory.data_ptr()
        partials, counts = rows + answer_bytes, 0
        pointers, tensors, chunks = plan.addresses_of()
        limit = threshold.data_ptr() if threshold is not None else 0
        if histograms:
            counts = rows + rows_bytes
            device.clear(memory[rows_bytes:answer_bytes])
        if layout.chunks:
            kernel = cuda_source.CHUNKS_HISTOGRAM if histograms else cuda_source.CHUNKS
            factor = scale.data_ptr() if scale is not None else 0
            arguments = (pointers, tensors, chunks, partials, counts, factor, limit)
            device.launch(kernel, layout.chunks, arguments)
        device.launch(cuda_source.ROWS, layout.count, (tensors, chunks, partials, rows, limit))
        return memory[:answer_bytes]

    def _plan(self, numels, dtypes):
        # by stream as well: what one stream has uploaded is not there yet for another
        key = (self._device.stream(), numels, dtypes)
        try:
            return self._plans[key]
        except KeyError:
            kinds = [self.kind(dtype) for dtype in dtypes]
            plan = None
            if None not in kinds and max(numels) <= MAX_ENTRIES:
                plan = Plan(self._device, Layout(numels, kinds, chunk_entries(sum(numels), self._device.processors)))
            self._plans[key] = plan
            if len(self._plans) > MAX_PLANS:
                self._plans.popitem(last=False)
            return plan

    def kind(self, dtype):
        """The kernel's number for a torch dtype, or None."""
        if dtype not in self._kinds:
            self._kinds[dtype] = kind_of(dtype)
        return self._kinds[dtype]

    def _gapless(self, tensor):
        """Whether the entries fill one stretch of memory: statistics do not ask in which order (channels_last, transposed)."""
        if tensor.is_contiguous():
            return True
        shape = (tuple(tensor.shape), tensor.stride())
        known = self._dense_shapes.get(shape)
        if known is None:
            if len(self._dense_shapes) >= _MAX_SHAPES:
                self._dense_shapes.clear()
            known = self._dense_shapes[shape] = _fills_memory(*shape)
        return known


def _fills_memory(sizes, strides):
    expected = 1
    for stride, size in sorted((stride, size) for size, stride in zip(sizes, strides) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True
