"""Gradient clipping: gradients are measured before it, the coefficient is kept, and clipping what is still scaled is noticed.

torch's clip functions look `_get_total_norm` and `_clip_grads_with_norm_` up in their module at each call, so a wrapper there
also sees loops that did `from torch.nn.utils import clip_grad_norm_`. Torch before 2.6 has no such functions: there the
public names are wrapped. `clip_grad_value_` asks `_group_tensors_by_device_and_dtype` of the same module.
FullyShardedDataParallel has a `clip_grad_norm_` of its own, which asks none of these.
"""

import math
import sys
import time

from .. import discovery
from ..post_import import Waiter
from .gradients import versions

_now = time.perf_counter_ns
#: The other functions of that module that group tensors, twice in each clip by norm.
_BY_NORM = frozenset(("_get_total_norm", "get_total_norm", "_clip_grads_with_norm_", "clip_grads_with_norm_"))
#: Not imported for our sake: it takes 1.3 s, and most jobs do without.
_SHARDING = "torch.distributed.fsdp.fully_sharded_data_parallel"
#: How often the variables of the loop are searched for an optimizer that has not stepped yet.
SEARCHES = 3


class Clip:
    """One call of a clip function on the gradients of a part."""

    __slots__ = ("max_norm", "total_norm", "versions")

    def __init__(self, max_norm, total_norm):
        self.max_norm = max_norm
        self.total_norm = total_norm  # 0-d tensor as torch computed it, or None: not by norm
        self.versions = None  # of the gradients when the call had ended


class ClippingProbe:
    """See the module."""

    name = "clipping"

    def install(self, recorder):
        self._recorder = recorder
        self._searches = 0
        self._parts = []  # that the running call clips
        from torch.nn import utils
        from torch.nn.utils import clip_grad

        guard, wrap = recorder.session.guard, recorder.session.ledger.wrap
        before, clipped, by_value = (recorder.hook(self.name, f) for f in (self._before, self._clipped, self._before_value))
        if hasattr(clip_grad, "_get_total_norm") and hasattr(clip_grad, "_clip_grads_with_norm_"):
            wrap(clip_grad, "_get_total_norm", lambda original: _first(original, before))
            wrap(clip_grad, "_clip_grads_with_norm_", lambda original: _then(original, clipped))
            if hasattr(utils, "get_total_norm"):  # the same two for loops that call them by themselves
                wrap(utils, "get_total_norm", lambda original: _first(original, before))
                wrap(utils, "clip_grads_with_norm_", lambda original: _then(original, clipped))
        else:
            for owner in (clip_grad, utils):
                wrap(owner, "clip_grad_norm_", lambda original: _both(original, before, clipped))
        if hasattr(clip_grad, "_group_tensors_by_device_and_dtype"):
            wrap(clip_grad, "_group_tensors_by_device_and_dtype", lambda original: _first(original, by_value))
        self._waiter = Waiter({_SHARDING: self._wrap_sharded}, lambda error: guard.fault(self.name, error))
        self._waiter.begin()

    def remove(self):
        """Stop waiting for an import; the ledger takes the wrappers out."""
        self._waiter.leave()

    def _wrap_sharded(self, module):
        ledger = self._recorder.session.ledger
        before, clipped = (self._recorder.hook(self.name, f) for f in (self._before_sharded, self._clipped))
        ledger.wrap(module.FullyShardedDataParallel, "clip_grad_norm_", lambda original: _method(original, before, clipped))

    def _before_sharded(self, model):
        self._before([p.grad for p in model.parameters() if p.grad is not None])

    def after(self, part):
        """The clip's limit, and what it left of the norm where that was not measured."""
        measured = part.gradients
        clip = measured.clip if measured is not None else None
        if clip is None:
            return
        if clip.max_norm is not None:
            part.fields["clip_max_norm"] = clip.max_norm
        if measured.after is None and clip.total_norm is not None:
            if clip.total_norm.is_cpu:
                total_norm = clip.total_norm.item()
                part.at_end(lambda p: _derive(p, clip.max_norm, total_norm))
                return
            part.read([clip.total_norm.detach()], lambda values: part.at_end(lambda p: _derive(p, clip.max_norm, values[0])))

    def _before(self, tensors, *_args, **_kwargs):
        """Gradients are about to be measured for clipping: measure them first."""
        began = _now()
        recorder = self._recorder
        if not isinstance(tensors, (list, tuple)) and not hasattr(tensors, "dim"):
            return  # an iterator can be read only once, and not by us
        if recorder.capturing():
            return
        recorder.clock.enter("other", began)
        try:
            self._parts = self._measured(tensors)
        finally:
            recorder.clock.leave(_now())

    def _measured(self, tensors):
        ids = set(map(id, [tensors] if hasattr(tensors, "dim") else tensors))
        parts = self._parts_of(ids)
        if not parts and self._searches < SEARCHES:
            # The first step's optimizer has not stepped yet, but it is in sight of the loop that clips its gradients.
            self._searches += 1
            for optimizer in discovery.optimizers_in_sight():
                if not ids.isdisjoint(id(p.grad) for group in optimizer.param_groups for p in group["params"]):
                    self._recorder.roster.entry(optimizer)
            parts = self._parts_of(ids)
        return parts

    def _parts_of(self, ids):
        parts = []
        for entry in self._recorder.roster:
            optimizer = entry.optimizer() if entry.optimizer is not None else None
            if optimizer is None or ids.isdisjoint([id(p.grad) for p in entry.parameters]):
                continue
            part = self._recorder.open_part(optimizer)
            fresh = part.gradients is not None and part.gradients.backwards == self._recorder.backwards
            if not fresh:  # a second clip of the same gradients: the first saw them whole
                self._recorder.by_name["gradients"].measure(part)
                part.gradients.versions = versions(entry)
            parts.append((part, len(ids)))
        return parts

    def _clipped(self, _parameters, max_norm, total_norm, *_args, **_kwargs):
        """Clipping by norm is done."""
        parts, self._parts = self._parts, []
        for part, count in parts:
            again = part.gradients.clip is not None
            self._note(part, Clip(float(max_norm), total_norm if hasattr(total_norm, "dim") and not again else None))
            covered = count >= len(part.gradients.reading.entries)
            if not covered or again:
                part.gradients.clip.total_norm = None
            if part.gradients.clip.total_norm is not None:
                part.gradients.clip.versions = versions(part.entry)

    def _before_value(self, tensor_lists, *_args, **_kwargs):
        """clip_grad_value_ is about to clamp these gradients (other callers of the grouping function are not meant)."""
        caller = sys._getframe(4)  # behind this, the hook, our wrapper and the ledger's
        if caller.f_code.co_name in _BY_NORM or not _asked_by_value(caller):
            return
        self._before(tensor_lists[0])
        for part, _ in self._parts:
            self._note(part, Clip(None, None))
        self._parts = []

    def _note(self, part, clip):
        part.gradients.clip = clip
        scaled = self._recorder.by_name["loss_scale"].still_scaled(part.entry)
        part.set("clipped_while_scaled", 1.0 if scaled or part.get("clipped_while_scaled") else 0.0)


def _asked_by_value(caller):
    for _ in range(6):
        if caller is None or caller.f_code.co_name == "clip_grad_value_":
            return caller is not None
        caller = caller.f_back
    return False


def _derive(part, max_norm, total_norm):
    """The norm after clipping: torch multiplies every gradient with min(1, max_norm / (total + 1e-6))."""
    norm = part.get("grad_norm")
    if norm is not None:
        coefficient = 0.0 if math.isnan(total_norm) else max_norm / (total_norm + 1e-6)
        part.set("grad_norm_clipped", norm * min(1.0, coefficient))


def _first(original, before):
    def wrapper(*args, **kwargs):
        before(*args, **kwargs)
        return original(*args, **kwargs)

    return wrapper


def _then(original, after):
    def wrapper(*args, **kwargs):
        result = original(*args, **kwargs)
        after(*args, **kwargs)
        return result

    return wrapper


def _method(original, before, after):
    def clip_grad_norm_(self, max_norm, *args, **kwargs):
        before(self)
        total_norm = original(self, max_norm, *args, **kwargs)
        after(self, max_norm, total_norm)
        return total_norm

    return clip_grad_norm_


def _both(original, before, after):
    def clip_grad_norm_(parameters, max_norm, *args, **kwargs):
        parameters = [parameters] if hasattr(parameters, "grad") else list(parameters)
        before([p.grad for p in parameters if p.grad is not None])
        total_norm = original(parameters, max_norm, *args, **kwargs)
        after(parameters, max_norm, total_norm)
        return total_norm

    return clip_grad_norm_
