"""L2 norms of a list of tensors, computed in a type that is wide enough."""


def l2_norms(tensors, dtype):
    """Tuple or list of 0-d tensors of `dtype` on the tensors' device, one for each; reads each entry once.

    Half precision must not be rounded to itself, nor overflow: 100 entries of 6e4 have a norm that fp16 cannot hold.
    """
    import torch

    try:
        return torch._foreach_norm(tensors, 2, dtype=dtype)
    except TypeError:  # torch before 2.4 has no dtype there
        return [torch.linalg.vector_norm(tensor, 2, dtype=dtype) for tensor in tensors]
