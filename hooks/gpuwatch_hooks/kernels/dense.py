"""Which tensors can be read at all, and as what: real, strided and floating, or not.

Sparse gradients are summed up first (an uncoalesced one has a wrong norm: 3.46 for 4.47), complex ones are read as pairs
of real numbers, a sharded one as this rank's part. Quantised and integer tensors and strange subclasses have no gradient
statistics; they are named once, and left alone.
"""


def readable(tensor):
    """(tensor to read, None), or (None, reason). Never copies a dense tensor; a sparse one costs its coalesced copy.

    The result is detached, real and strided: float16, bfloat16, float32 or float64, of any shape, perhaps empty and perhaps
    not contiguous. A complex tensor becomes its real and imaginary parts, so it has twice as many entries.
    """
    import torch

    tensor = _plain(tensor)
    reason = _obstacle(tensor)
    if reason is not None:
        return None, reason
    if tensor.layout is not torch.strided:
        tensor = summed_values(tensor)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.detach(), None


def _plain(tensor):
    """The tensor itself, this rank's part of a DTensor, or None for another subclass, whose numbers may mean anything."""
    import torch

    plain = (torch.Tensor, torch.nn.Parameter)
    if type(tensor) in plain:
        return tensor
    to_local = getattr(tensor, "to_local", None)
    local = to_local() if to_local is not None else None
    return local if type(local) in plain else None  # a part that a collective still fills would have to be waited for


def _obstacle(tensor):
    import torch

    if tensor is None:
        return "tensor subclass"
    if tensor.device.type == "meta":
        return "meta tensor"
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.element_size() < 2:  # fp8 has no arithmetic
        return "not floating point"
    summed = tensor.layout is torch.strided or (tensor.layout is torch.sparse_coo and tensor.is_coalesced())
    if not summed and not tensor.is_cpu:
        return "sparse on a device: summing its duplicates would wait for it"
    return None


def summed_values(tensor):
    """The values of a sparse tensor after duplicates are summed, without changing the tensor itself."""
    import torch

    if tensor.layout is torch.sparse_coo:
        return tensor.detach().coalesce()._values()
    return tensor.detach().values()
