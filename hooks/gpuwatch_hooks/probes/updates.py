"""How large an update was beside the weights that it changed: the L2 norm of the difference over that of the weights.

The only measurement that needs a copy of the weights, so it is the first that the governor thins, and the copy is bounded:
of models above COPIED_ENTRIES every k-th entry of the large tensors is followed, the same ones before and after, and the
norms are scaled up (k is odd, so that it does not run along the columns of a matrix). Where a fused kernel reads them, that is
one launch before the step and two after it; by plain operators it is some launches for each tensor.
"""

import math
import time

from .. import followed_weights
from ..reading import Reading

_now = time.perf_counter_ns
COPIED_ENTRIES = 1 << 22
#: Tensors up to here are followed whole.
WHOLE_ENTRIES = 4096


class Copy:
    """The followed entries of the weights before an update."""

    __slots__ = ("factors", "followed", "parameters", "places", "tensors", "views")

    def __init__(self, entry, selection=None):
        total = sum(entry.numels)
        stride = 1 if total <= COPIED_ENTRIES else -(-total // COPIED_ENTRIES) | 1
        self.places, self.parameters, self.factors, strides = [], [], [], []
        for place, parameter in enumerate(entry.parameters):
            if not _followed(parameter):
                continue
            entries = parameter.numel()
            sampled = stride > 1 and entries > WHOLE_ENTRIES and parameter.is_contiguous()
            self.places.append(place)
            self.parameters.append(parameter)
            strides.append(stride if sampled else 1)
            self.factors.append(math.sqrt(entries / -(-entries // stride)) if sampled else 1.0)
        self.views = self.tensors = ()
        self.followed = followed_weights.keep(selection, self.parameters, strides)
        if self.followed is None:
            self.views = [_every(parameter.detach(), k) for parameter, k in zip(self.parameters, strides)]
            self.tensors = [view.clone() for view in self.views]

    def compare(self, part, selection):
        """(weights before, updates) as readings, or None where the weights are no longer what was kept."""
        if self.followed is not None:
            return self.followed.compare(part, self.places, self.parameters)
        import torch

        weights, updates = Reading(selection), Reading(selection)
        weights.take(part, self.places, self.tensors)
        updates.take(part, self.places, torch._foreach_sub(self.views, self.tensors))
        return weights, updates


class UpdatesProbe:
    """See the module."""

    name = "updates"
    sampled = True

    def install(self, recorder):
        self._recorder = recorder

    def before(self, part):
        recorder = self._recorder
        if "update_ratio" in part.due:
            began = _now()
            part.updates = Copy(part.entry, recorder.selection)
            recorder.governor.spent("update_ratio", _now() - began)

    def after(self, part):
        copy, part.updates = part.updates, None
        if copy is None or not copy.places:
            return
        began = _now()
        readings = copy.compare(part, self._recorder.selection)
        if readings is not None:
            factors = dict(zip(copy.places, copy.factors))
            part.at_end(lambda done: _finish(done, *readings, factors))
        self._recorder.governor.spent("update_ratio", _now() - began)


def _finish(part, weights, updates, factors):
    for reading in (weights, updates):
        reading.weigh(factors)
    before = weights.norm()
    if before > 0.0:
        part.set("update_ratio", updates.norm() / before)
    part.add_rows("update", *updates.cells(part.tensors))


def _every(tensor, stride):
    return tensor.view(-1)[::stride] if stride > 1 else tensor


def _followed(parameter):
    import torch

    plain = type(parameter) in (torch.Tensor, torch.nn.Parameter)
    return plain and parameter.requires_grad and parameter.layout is torch.strided and parameter.is_floating_point()
