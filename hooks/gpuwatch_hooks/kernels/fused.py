"""One pass over many tensors on a device: every column of wire.TENSOR_COLUMNS, and a histogram where it is asked for.

What differs between a real device and the tests' emulation of one is behind a small object (nvrtc.py has the real one):

    processors                                   multiprocessors of the device
    stream() -> int                              the handle of the current stream
    empty(bytes) -> uint8 tensor on the device, of the caching allocator, to be used in the order of the current stream
    upload(target, bytes)                        copy into such a tensor, queued on the current stream, from pinned memory
    clear(tensor)                                zero it, queued likewise
    launch(kernel, blocks, threads, arguments)   queue a kernel of cuda_source; arguments are addresses, 0 for none

Everything is queued on the stream of the moment, behind the work that made the tensors and before whatever frees or reuses
them; nothing waits. The addresses travel to the device only when they have changed, everything else only for a new layout.
"""

import collections

from . import cuda_source
from .chunks import MAX_ENTRIES, Layout, chunk_entries, kind_of

#: Layouts kept for each device and stream: gradients, weights and updates of a few optimizers.
MAX_PLANS = 16
_MAX_SHAPES = 4096


class _Plan:
    """A layout on the device, and the addresses that were sent there last."""

    __slots__ = ("addresses", "layout", "pointers", "table")

    def __init__(self, device, numels, kinds):
        self.layout = Layout(numels, kinds, chunk_entries(sum(numels), device.processors))
        self.table = device.empty(max(1, len(self.layout.table)))
        self.pointers = device.empty(max(1, 8 * len(numels)))
        device.upload(self.table, self.layout.table)
        self.addresses = None


class Fused:
    """The kernel on one device. Used by one thread at a time."""

    def __init__(self, device, facts, errors=()):
        import torch

        self.errors = errors  # exceptions of the device that mean: not with this kernel
        self.facts = facts  # what doctor and the run's facts say about it
        self.uploads = 0  # of addresses
        self._device = device
        self._plans = collections.OrderedDict()
        self._kinds = {}  # torch dtype -> kind or None
        self._dense_shapes = {}
        self._address, self._numel = torch.Tensor.data_ptr, torch.Tensor.numel
        self._dtype, self._contiguous = torch.Tensor.dtype.__get__, torch.Tensor.is_contiguous

    def fits(self, tensor):
        """Whether the kernel can read this dense tensor of its device: fp32, bf16 or fp16 without gaps, in any order."""
        return self._kind(tensor.dtype) is not None and tensor.numel() <= MAX_ENTRIES and self._gapless(tensor)

    def measure(self, tensors, scale=None, threshold=None, histograms=False, sizes=None):
        """uint8 tensor on the device with the answer for `tensors` (see chunks.decode), or None where one does not fit.

        `scale`, `threshold`: 0-d float64 tensors on the same device, or None. `sizes`: the tensors' numbers of entries as a
        tuple, where they are known already. The tensors need to live until this returns.
        """
        device = self._device
        plan = self._plan(sizes or tuple(map(self._numel, tensors)), tuple(map(self._dtype, tensors)))
        if plan is None or not (all(map(self._contiguous, tensors)) or all(map(self._gapless, tensors))):
            return None
        addresses = tuple(map(self._address, tensors))
        if addresses != plan.addresses:
            plan.addresses = None  # in case the upload fails
            device.upload(plan.pointers, _packed(addresses))
            plan.addresses = addresses
            self.uploads += 1
        return self._queue(plan, scale, threshold, histograms)

    def _queue(self, plan, scale, threshold, histograms):
        layout, device = plan.layout, self._device
        answer_bytes, rows_bytes = layout.answer_bytes(histograms), layout.answer_bytes(False)
        memory = device.empty(answer_bytes + layout.partial_bytes)
        rows = memory.data_ptr()
        partials, counts = rows + answer_bytes, 0
        tensors = plan.table.data_ptr()
        chunks = tensors + layout.chunks_offset
        limit = threshold.data_ptr() if threshold is not None else 0
        if histograms:
            counts = rows + rows_bytes
            device.clear(memory[rows_bytes:answer_bytes])
        if layout.chunks:
            kernel = cuda_source.CHUNKS_HISTOGRAM if histograms else cuda_source.CHUNKS
            factor = scale.data_ptr() if scale is not None else 0
            arguments = (plan.pointers.data_ptr(), tensors, chunks, partials, counts, factor, limit)
            device.launch(kernel, layout.chunks, cuda_source.THREADS, arguments)
        device.launch(cuda_source.ROWS, layout.count, cuda_source.ROW_THREADS, (tensors, chunks, partials, rows, limit))
        return memory[:answer_bytes]

    def _plan(self, numels, dtypes):
        # by stream as well: what one stream has uploaded is not there yet for another
        key = (self._device.stream(), numels, dtypes)
        try:
            return self._plans[key]
        except KeyError:
            kinds = [self._kind(dtype) for dtype in dtypes]
            fits = None not in kinds and max(numels) <= MAX_ENTRIES
            plan = self._plans[key] = _Plan(self._device, numels, kinds) if fits else None
            if len(self._plans) > MAX_PLANS:
                self._plans.popitem(last=False)
            return plan

    def _kind(self, dtype):
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


def _packed(addresses):
    from array import array

    return array("Q", addresses).tobytes()
