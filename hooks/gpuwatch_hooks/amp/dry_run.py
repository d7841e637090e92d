"""The last forward pass of each model once more in the other precision, and a backward through it, with nothing left of either.

What would fail in the user's own call, or behind it in the user's loss, is found here: a kernel that knows one precision only,
a function whose backward mixes two, activations that float16 cannot hold, half-precision tensors that leave the model by
another way than its result.
"""

import sys

from .. import keepsake
from .outputs import detached, tensors

#: Wrappers whose own call would begin something between the ranks that only a real step ends.
_SHARDED = ("FullyShardedDataParallel", "FSDPModule")


def reason_against(calls, switch, variant, modules):
    """Why the job may not be switched to `variant` (a key of switch.VARIANTS), as a clause, or None.

    `calls`: (module, args, kwargs) of one forward pass of each module that is called.
    """
    kept = keepsake.Keepsake(modules, (), (), weights=False)
    attributes = [(one, dict(vars(one))) for root in modules for one in root.modules()]
    switch.set(variant)
    try:
        for module, args, kwargs in calls:
            problem = _forward_and_backward(module, detached(args), detached(kwargs), variant)
            if problem is not None:
                return problem
        return _leaks(modules) if variant != "float32" else None
    except Exception as error:
        text = "its forward or backward pass fails in %s (%s: %s)"
        return text % (variant, type(error).__name__, str(error).partition("\n")[0][:160])
    finally:
        switch.set(None)
        for one, before in attributes:
            _put_back(one, before)
        kept.restore()


def _forward_and_backward(module, args, kwargs, variant):
    torch = sys.modules["torch"]
    sharded = any(kind.__name__ in _SHARDED for kind in type(module).__mro__)
    with torch.set_grad_enabled(not sharded):
        if hasattr(module, "no_sync") and not sharded:  # DistributedDataParallel's reducer would wait for a backward
            with module.no_sync():
                output = module(*args, **kwargs)
        else:
            output = module(*args, **kwargs)
        return _backward(module, output, variant)


def _backward(module, output, variant):
    torch = sys.modules["torch"]
    try:
        found = tensors(output)
    except TypeError as kind:
        return "what its model returns is a %s, in which half-precision tensors cannot be given back in float32" % kind
    found = [tensor for tensor in found if tensor.is_floating_point()]
    if variant == "float16" and not all(bool(tensor.isfinite().all()) for tensor in found):
        return "its outputs are not finite in float16"
    ends = [tensor for tensor in found if tensor.requires_grad]
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not ends or not parameters:
        return None
    try:
        gradients = torch.autograd.grad([end.float().mean() for end in ends], parameters, allow_unused=True)
    except RuntimeError as error:
        if "checkpoint" in str(error).lower():  # its reentrant kind refuses autograd.grad
            return None
        raise
    if variant == "float16" and not all(bool(one.isfinite().all()) for one in gradients if one is not None):
        return "its gradients are not finite in float16"
    return None


def _leaks(modules):
    """Half-precision tensors on a module's attributes, or within reach of the user's own hooks: a loss may take them there."""
    torch = sys.modules["torch"]
    for root in modules:
        for one in root.modules():
            for name, value in vars(one).items():
                values = value if isinstance(value, (list, tuple)) else value.values() if type(value) is dict else [value]
                if any(isinstance(v, torch.Tensor) and v.dtype in (torch.float16, torch.bfloat16) for v in values):
                    return "%s keeps what it has computed in its attribute %s" % (type(one).__name__, name)
            hooks = [hook for hook in one._forward_hooks.values() if not _is_harmless(hook)] if one is not root else []
            if hooks:
                return "a forward hook of its own on %s sees what it would not see otherwise" % type(one).__name__
    return None


def _is_harmless(hook):
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return str(module).startswith(("gpuwatch_hooks", "torch."))


def _put_back(module, before):
    """A module's attributes other than torch's own tables, which its own names begin with an underscore."""
    now = vars(module)
    for name in [name for name in now if name not in before and not name.startswith("_")]:
        del now[name]
    for name, value in before.items():
        if not name.startswith("_") and now.get(name) is not value:
            now[name] = value
