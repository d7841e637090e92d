"""The precision of a model's forward pass, switched from outside: hooks on the module that open and close an autocast region.

The region is inside whatever region the job itself has open, and so decides. What the module returns in half precision
because of us is given back in float32, as the job's loss expects from a model in float32.
"""

import sys

from .. import untraced

#: name -> (dtype of torch by name, or None: no autocast; whether TF32 may be used)
VARIANTS = {
    "float32": (None, False),
    "tf32": (None, True),
    "float16": ("float16", True),
    "bfloat16": ("bfloat16", True),
}


class Switch:
    """Puts the forward passes of `modules` under `variant` (a key of VARIANTS; None: as the job has it). `remove` it."""

    def __init__(self, modules, device_type, training_only=False):
        self.variant = None
        self.forwards = 0  # outermost calls seen
        self.last_call = None  # (module, args, kwargs) of the last one, while `keep_call` is set
        self.keep_call = False
        self._device_type = device_type
        self._training_only = training_only  # a validation pass in between is none of ours
        self._regions = []
        self._tf32 = None
        self._handles = []
        entering = untraced.hide(lambda module, args, kwargs: self._entering(module, args, kwargs))  # noqa: PLW0108 - a method takes no mark
        leaving = untraced.hide(lambda _module, _args, output: self._leaving(output))
        for module in modules:
            self._handles.append(module.register_forward_pre_hook(entering, prepend=True, with_kwargs=True))
            self._handles.append(module.register_forward_hook(leaving, always_call=True))

    def remove(self):
        """Take the hooks out, and TF32 back to what it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.set(None)

    def set(self, variant):
        """Switch, between two steps."""
        self.variant = variant
        torch = sys.modules["torch"]
        if self._device_type != "cuda":
            return
        flags = torch.backends.cuda.matmul, torch.backends.cudnn
        if variant is None:
            if self._tf32 is not None:
                for flag, value in zip(flags, self._tf32):
                    flag.allow_tf32 = value
                self._tf32 = None
            return
        if self._tf32 is None:
            self._tf32 = [flag.allow_tf32 for flag in flags]
        dtype, tf32 = VARIANTS[variant]
        if dtype is None:
            for flag in flags:
                flag.allow_tf32 = tf32

    def region(self, variant):
        """A torch.autocast of the variant."""
        torch = sys.modules["torch"]
        name, _ = VARIANTS[variant]
        if name is None:
            return torch.autocast(self._device_type, enabled=False)
        return torch.autocast(self._device_type, dtype=getattr(torch, name))

    def _entering(self, module, args, kwargs):
        if self._regions:
            self._regions.append(None)  # a module of ours inside a module of ours
            return
        self.forwards += 1
        if self.keep_call:
            self.last_call = (module, args, kwargs)
        region = None
        if self.variant is not None and (module.training or not self._training_only):
            region = self.region(self.variant)
            region.__enter__()
        self._regions.append(region or False)

    def _leaving(self, output):
        region = self._regions.pop() if self._regions else None
        if not region:
            return None
        region.__exit__(None, None, None)
        return in_float32(output) if VARIANTS[self.variant or "float32"][0] else None


def in_float32(value):
    """`value` with each float16 and bfloat16 tensor in it as float32; tuples, lists and dicts keep their kind."""
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
    return value
