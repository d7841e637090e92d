"""A model that the loop never calls itself: which modules inside it are called outermost, and with what.

A LightningModule whose `training_step` uses `self.net(x)` is one, or any object of a user's own whose method takes the step.
One step is watched, with hooks on all its modules; from then on only the ones that were called outermost change precision, and
only those with parameters: a loss or a metric stays outside, as in a loop that calls its model. The others keep a hook if they
are in no such module, since a dropped step begins with the first call of any of them: a Dropout draws random numbers too.
"""

import sys

from .outputs import tensors

#: Two hooks on each take about 10 us; the largest models that are trained whole have some thousands.
MOST_MODULES = 10_000
#: What the calls were given is kept until the step ends. Of activations, which the job itself frees in its backward, this much.
MOST_KEPT_BYTES = 2**28


class Calls:
    """The outermost calls in train mode, each module's last one. `of`: id(module) -> (module, args, kwargs)."""

    def __init__(self):
        self.of = {}
        self.entered = set()  # ids of all modules that were called, inside another one too
        self._kept_bytes = {}
        self.too_large = False

    def add(self, module, args, kwargs):
        """Called inside the user's own call."""
        key = id(module)
        if not has_parameters(module):
            return
        self._kept_bytes[key] = _activation_bytes((args, kwargs))
        if sum(self._kept_bytes.values()) > MOST_KEPT_BYTES:
            self.too_large = True
            self.of.clear()
        if not self.too_large:
            self.of[key] = (module, args, kwargs)


def candidates(roots):
    """(modules, reason): `roots` and all inside them that may be called outermost; why they cannot be watched, or None."""
    found, pending, inner = {}, list(roots), False
    while pending:
        module = pending.pop()
        if id(module) in found:
            continue
        found[id(module)] = module
        if len(found) > MOST_MODULES:
            return [], "the module that was found is never called, and has too many others inside it"
        if getattr(module, "_compiled_call_impl", None) is not None:
            return [], "a module inside the one that was found is compiled in place, hooks on it included"
        if type(module).__name__ == "OptimizedModule":
            inner = True  # hooks inside would compile it again, and may not be in a graph without breaks
        elif not _is_scripted(module):
            pending.extend(child for child in module._modules.values() if child is not None)
    if not inner and _has_compiled():
        return [], "the module that was found is never called, and the function that calls those inside it may be compiled"
    return list(found.values()), None


def without_those_inside(modules, switched):
    """`modules` less those that are only called inside one of `switched`."""
    kept = {id(module) for module in switched}
    inside = {id(module) for one in switched for module in one.modules()} - kept
    return [module for module in modules if id(module) not in inside]


def has_parameters(module):
    return next(module.parameters(), None) is not None


def _activation_bytes(value):
    try:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors(value) if tensor.requires_grad)
    except Exception:  # an object of the user's own among the arguments
        return 0


def _is_scripted(module):
    return any(kind.__name__ == "ScriptModule" for kind in type(module).__mro__)  # to name torch's own warns in newer versions


def _has_compiled():
    """Whether torch.compile has compiled anything in this process: torch counts graphs, and frames where they may break."""
    counters = getattr(sys.modules.get("torch._dynamo.utils"), "counters", None)
    return bool(counters) and any(sum(counters.get(table, {}).values()) > 0 for table in ("frames", "stats"))
