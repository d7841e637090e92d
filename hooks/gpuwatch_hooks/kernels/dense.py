"""Which tensors can be read at all, and as what: real, strided and floating, or not.

Sparse gradients are summed up first (an uncoalesced one has a wrong norm: 3.46 for 4.47), complex ones are read as pairs
of real numbers, a sharded one as this rank's part. Quantised and integer tensors and strange subclasses have no gradient
statistics; they are named once, and left alone.
"""

#: Why a tensor is not read; None means that it is.
UNREADABLE = ("not floating point", "tensor subclass", "meta tensor")


def readable(tensor):
    """(tensor to read, None), or (None, reason). Never copies a dense tensor; a sparse one costs its coalesced copy.

    The result is detached, real and strided: float16, bfloat16, float32 or float64, of any shape, perhaps empty and perhaps
    not contiguous. A complex tensor becomes its real and imaginary parts, so it has twice as many entries.
    """
    import torch

    kind = type(tensor)
    if kind is not torch.Tensor and kind is not torch.nn.Parameter:
        to_local = getattr(tensor, "to_local", None)
        if to_local is None:
            return None, "tensor subclass"
        tensor = to_local()
        if type(tensor) is not torch.Tensor:  # a collective that has not completed: waiting would be a synchronisation
            return None, "tensor subclass"
    if tensor.layout is not torch.strided:
        tensor = summed_values(tensor)
    if tensor.device.type == "meta":
        return None, "meta tensor"
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj()).detach(), None
    if not tensor.is_floating_point() or tensor.element_size() < 2:  # fp8 has no arithmetic
        return None, "not floating point"
    return tensor.detach(), None


def summed_values(tensor):
    """The values of a sparse tensor after duplicates are summed, without changing the tensor itself."""
    import torch

    if tensor.layout is torch.sparse_coo:
        return tensor.detach().coalesce()._values()
    return tensor.detach().values()
