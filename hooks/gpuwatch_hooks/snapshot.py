"""A tensor as it is now, to be read later on another thread, without waiting for the device.

A CPU tensor is copied at once (training may change it in place a moment later). A CUDA tensor is copied asynchronously to
pinned memory behind the work already queued on the caller's stream; whoever calls `read` waits for that copy, so `read` belongs
on the control thread. Torch's own loops run in parallel from 32,768 elements on (scatter_add earlier, aminmax, bucketize and
floor at once), which on a second thread starts a second pool of OpenMP threads inside the job: whatever the control thread
computes goes in pieces, by operations that stay serial on them.
"""

PIECE_ELEMENTS = 16_384


class Snapshot:
    """A private copy of one dense tensor; `size_bytes` is what it keeps alive until it is read."""

    def __init__(self, host, event):
        self._host = host
        self._event = event
        self.size_bytes = host.numel() * host.element_size()

    def read(self):
        """The CPU tensor; waits for the device's copy, so never call it on the training thread."""
        if self._event is not None:
            from .kernels.driver import Driver

            with Driver().relaxed():  # the training thread may be capturing a CUDA graph
                self._event.synchronize()
        return self._host

    def __float__(self):
        """Its only element; for one that cannot be read, NaN, since a logged scalar must not stop those behind it."""
        try:
            return float(self.read().reshape(()))
        except Exception:
            return float("nan")


def take(tensor):
    """A Snapshot of `tensor` (any strided torch.Tensor); raises ValueError while a CUDA graph is being captured."""
    import torch

    with torch.no_grad():
        source = plain(tensor)
        if source.device.type == "cpu":
            return Snapshot(source.clone(memory_format=torch.contiguous_format), None)
        if source.device.type != "cuda":
            return Snapshot(source.to("cpu"), None)  # such a backend has no pinned copy that could be waited for elsewhere
        refuse_capture(source)
        with torch.cuda.device(source.device):
            host = torch.empty(source.shape, dtype=source.dtype, device="cpu", pin_memory=True)
            host.copy_(source.contiguous(), non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        return Snapshot(host, event)


def refuse_capture(tensor):
    """Raise ValueError where an operation on `tensor` would become part of a CUDA graph of the user's."""
    import torch

    if tensor.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise ValueError("a CUDA graph is being captured")


def plain(tensor):
    """`tensor` detached, as an ordinary strided real tensor: this rank's shard of a DTensor, the stored values of a sparse one,
    magnitudes of complex numbers, real values of quantised ones."""
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    elif str(tensor.layout).startswith("torch.sparse"):
        tensor = tensor.values()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    return tensor.abs() if tensor.is_complex() else tensor
