"""Statistics for lists of tensors, one kernel for each kind of device.

A kernel is a module with three functions; each takes the tensors that `dense.readable` prepared (real, strided, dense):

    norms(tensors, sizes=None)            -> Norms       the always-on pass: one read of every element
    table(tensors, scale, threshold)      -> Table       every column of wire.TENSOR_COLUMNS: several reads, sampled
    histograms(tensors, scale)            -> int32[n,64] log2 magnitudes: dear, sampled

`scale`: what to multiply every entry with (a float, a 0-d tensor on the same device, or None for 1): a fused optimizer
sees gradients that still carry the loss scale. `threshold`: true magnitudes at or below it would be flushed to zero by
fp16 at the present loss scale (float, 0-d tensor, or None when there is no loss scale and so no such question).

A CUDA device may have a fused kernel besides (`selection.py`, `fused.py`), which does all three in one pass.

On the CPU the results hold Python floats and are there at once. On a device they hold tensors that the readback brings to
the host a step later; the training thread never waits for them.
"""

import importlib

_chosen = {}  # type of device -> kernel


def choose(device_type):
    """The kernel for tensors of `device_type` ("cpu", "cuda", ...): the CPU's own, else the one made of plain operators."""
    kernel = _chosen.get(device_type)
    if kernel is None:
        name = "cpu" if device_type == "cpu" else "foreach"
        kernel = _chosen[device_type] = importlib.import_module("." + name, __name__)
    return kernel
