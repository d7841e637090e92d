"""What a model returns, taken apart: its tensors found, and those in half precision given back in float32."""

import dataclasses
import sys


def in_float32(value):
    """`value` with each float16 and bfloat16 tensor in it as float32; tuples, lists, dicts and dataclasses keep their kind."""
    torch = sys.modules["torch"]
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, dict):
        for key in list(value):
            value[key] = in_float32(value[key])
        return value
    if isinstance(value, tuple):
        parts = [in_float32(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, list):
        return [in_float32(part) for part in value]
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if hasattr(value, field.name):
                object.__setattr__(value, field.name, in_float32(getattr(value, field.name)))  # also of a frozen one
    return value


def tensors(value):
    """The tensors in `value`. Raises TypeError for an object that `in_float32` cannot look into."""
    torch = sys.modules["torch"]
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        parts = value.values()
    elif isinstance(value, (tuple, list)):
        parts = value
    elif dataclasses.is_dataclass(value):
        parts = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    elif value is None or isinstance(value, (str, bytes, int, float, complex)):
        return []
    else:
        raise TypeError("%s.%s" % (type(value).__module__, type(value).__qualname__))
    return [tensor for part in parts for tensor in tensors(part)]


def detached(value):
    """`value` with each tensor cut off from the graph that made it; what cannot be looked into stays as it is."""
    torch = sys.modules["torch"]
    if isinstance(value, torch.Tensor):
        # A clone of a leaf: a module may change its input in place, which it may not do to a leaf itself.
        return value.detach().requires_grad_().clone() if value.requires_grad else value
    if type(value) is dict:
        return {key: detached(part) for key, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(detached(part) for part in value)
    return value
