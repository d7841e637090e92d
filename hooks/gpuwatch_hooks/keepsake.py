"""A training as it stands at one moment, to be put back bit for bit: weights, buffers, optimizers, scalers, random numbers.

Tensors are put back in place (`copy_`), since the job, a compiled step or a CUDA graph may hold the very tensors. What
cannot be known is not restored: data that was drawn, schedulers, metrics, anything that the job keeps for itself.

Gradients are switched off by `set_grad_enabled`: in a `no_grad` block a count of batches that moves is a BatchNorm that learns
from validation data (probes/validation.py).
"""

import copy
import random
import sys


class Keepsake:
    """Copies of everything that `modules`, `optimizers` and `scalers` hold, and of all random number generators, made now.

    They take as much memory as the weights, buffers and optimizer states together; `size_bytes` says how much, `bytes_of`
    beforehand. Without `weights` neither they nor the optimizers' states are kept: for steps that no optimizer takes.
    `restore` may be called more than once.
    """

    def __init__(self, modules, optimizers, scalers=(), weights=True):
        import torch

        self._modules = list(modules)
        self._tensors = []  # (tensor, its copy)
        self._seen = set()
        # Without a step of an optimizer nothing but a scheduler moves its groups, and the scheduler is the job's.
        self._optimizers = [(optimizer, groups_of(optimizer)) for optimizer in optimizers if weights]
        self._states = []
        self.left_out = []
        self._slots = _slots(self._modules)
        with torch.set_grad_enabled(False):
            for tensor in _held(self._modules, optimizers) if weights else _buffers(self._modules):
                self._keep(tensor)
            for optimizer in optimizers if weights else ():
                kept = {parameter: self._state(state) for parameter, state in optimizer.state.items()}
                self._states.append((optimizer, kept))
            self._scalers = [_scaler(scaler) for scaler in scalers]
        self._random = _generators()
        self.size_bytes = sum(kept.numel() * kept.element_size() for _, kept in self._tensors)
        if not self._modules:
            self.left_out.append("buffers (no module was found): BatchNorm keeps the statistics of the test's batches")

    def renew(self):
        """Keep what stands now instead, in the same memory; for one without weights. False when the buffers are others now."""
        import torch

        slots = _slots(self._modules)
        if [(id(owner), name, id(tensor)) for owner, name, tensor in slots] != [
            (id(owner), name, id(tensor)) for owner, name, tensor in self._slots
        ]:
            return False
        with torch.set_grad_enabled(False):
            _copy([(kept, tensor) for tensor, kept in self._tensors])
            self._scalers = [_scaler(scaler) for scaler, _, _ in self._scalers]
        self._random = _generators()
        return True

    def restore(self):
        """Put everything back as it was when this was made. Reads nothing from a device, so it never waits for one."""
        import torch

        for owner, name, tensor in self._slots:
            if owner._buffers.get(name) is not tensor:  # replaced instead of changed
                owner._buffers[name] = tensor
        with torch.set_grad_enabled(False):
            _copy(self._tensors)
            for optimizer, kept in self._states:
                for parameter in [p for p in optimizer.state if p not in kept]:
                    del optimizer.state[parameter]
                for parameter, state in kept.items():
                    own = optimizer.state.setdefault(parameter, {})
                    own.clear()
                    own.update({name: _value(value) for name, value in state.items()})
            for optimizer, groups in self._optimizers:
                put_groups_back(optimizer, groups)
        self.restore_scalers()
        _put_generators_back(self._random)

    def restore_scalers(self):
        """Those alone: the `update` behind a step moves them again."""
        import torch

        with torch.set_grad_enabled(False):
            for scaler, facts, tensors in self._scalers:
                scaler.__dict__.update(facts)
                _copy(tensors)
                for state in getattr(scaler, "_per_optimizer_states", {}).values():
                    # Inside a step whose gradients had overflowed: the `update` that follows must not halve the scale for it.
                    for found in state.get("found_inf_per_device", {}).values():
                        found.zero_()

    def _keep(self, tensor):
        if id(tensor) not in self._seen:
            self._seen.add(id(tensor))
            self._tensors.append(_kept(tensor))

    def _state(self, state):
        """One parameter's optimizer state: tensors by reference (their contents are kept), the rest copied."""
        import torch

        kept = {}
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                self._keep(value)
                kept[name] = value
            else:
                kept[name] = _Copied(value)
        return kept


def _kept(tensor):
    """(tensor, a copy of it). Of one that repeats itself in memory (expand), the part that it repeats."""
    import torch

    tensor = tensor.detach()
    if tensor.layout is torch.strided:
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride())):
            if stride == 0 and size > 1:
                tensor = tensor.narrow(dim, 0, 1)
    return tensor, tensor.clone()


def _scaler(scaler):
    """(a loss scaler, its attributes that are numbers or tensors, copies of those tensors)."""
    import torch

    facts = {
        name: value
        for name, value in scaler.__dict__.items()
        if isinstance(value, (torch.Tensor, int, float, bool)) or value is None
    }
    return scaler, facts, [_kept(value) for value in facts.values() if isinstance(value, torch.Tensor)]


def _copy(pairs):
    """Each (target, source): one kernel for hundreds of small tensors where torch has it, since these copies are timed too."""
    import torch

    together = {}
    for target, source in pairs:
        if type(target) in (torch.Tensor, torch.nn.Parameter) and hasattr(torch, "_foreach_copy_"):
            together.setdefault((target.device, target.dtype), []).append((target, source))
        else:
            target.copy_(source)
    for group in together.values():
        torch._foreach_copy_([target for target, _ in group], [source for _, source in group])


def _slots(modules):
    """[(module, name, tensor)] of all buffers, as they are held."""
    owners = {id(owner): owner for module in modules for owner in module.modules()}
    return [(owner, name, held) for owner in owners.values() for name, held in owner._buffers.items() if held is not None]


class _Copied:
    """A value of an optimizer's state that is no tensor (a step count, LBFGS's lists of tensors)."""

    def __init__(self, value):
        self.value = copy.deepcopy(value)


def _value(kept):
    return copy.deepcopy(kept.value) if isinstance(kept, _Copied) else kept


def bytes_of(modules, optimizers):
    """The memory that a Keepsake of these would take, in bytes."""
    import torch

    tensors = {id(tensor): tensor for tensor in _held(modules, optimizers)}
    for optimizer in optimizers:
        for state in optimizer.state.values():
            tensors.update({id(value): value for value in state.values() if isinstance(value, torch.Tensor)})
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _held(modules, optimizers):
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            yield from group["params"]


def _buffers(modules):
    for module in modules:
        yield from module.buffers()


def groups_of(optimizer):
    """The hyper-parameters of each of its groups, copied: learning rate, momentum, whatever a scheduler may move."""
    import torch

    return [
        {
            name: value.detach().clone() if isinstance(value, torch.Tensor) else copy.copy(value)
            for name, value in group.items()
            if name != "params"
        }
        for group in optimizer.param_groups
    ]


def put_groups_back(optimizer, groups):
    """Undo what has changed since `groups_of`."""
    import torch

    for group, kept in zip(optimizer.param_groups, groups):
        for name in [name for name in group if name != "params" and name not in kept]:
            del group[name]
        for name, value in kept.items():
            own = group.get(name)
            if isinstance(value, torch.Tensor) and isinstance(own, torch.Tensor):
                own.copy_(value)  # a capturable optimizer's learning rate is read by its graph
            else:
                group[name] = copy.copy(value)


def _generators():
    import torch

    kept = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        kept["cuda"] = torch.cuda.get_rng_state_all()
    numpy = sys.modules.get("numpy")
    if numpy is not None and hasattr(numpy, "random"):
        kept["numpy"] = numpy.random.get_state()
    return kept


def _put_generators_back(kept):
    import torch

    random.setstate(kept["python"])
    torch.set_rng_state(kept["torch"])
    if "cuda" in kept:
        torch.cuda.set_rng_state_all(kept["cuda"])
    if "numpy" in kept:
        sys.modules["numpy"].random.set_state(kept["numpy"])
