"""How large an update was beside the weights that it changed: the L2 norm of the difference over that of the weights.

The only measurement that needs a copy of the weights, so it is the first that the governor thins, and the copy is bounded:
of models above COPIED_ENTRIES every k-th entry of the large tensors is followed, the same ones before and after, and the
norms are scaled up (k is odd, so that it does not run along the columns of a matrix).
"""

import math
import time

from ..reading import Reading

_now = time.perf_counter_ns
COPIED_ENTRIES = 1 << 22
#: Tensors up to here are followed whole.
WHOLE_ENTRIES = 4096


class Copy:
    """The followed entries of the weights before an update."""

    __slots__ = ("factors", "places", "tensors", "views")

    def __init__(self, entry):
        total = sum(entry.numels)
        stride = 1 if total <= COPIED_ENTRIES else -(-total // COPIED_ENTRIES) | 1
        self.places, self.views, self.factors = [], [], []
        for place, parameter in enumerate(entry.parameters):
            if not _followed(parameter):
                continue
            view = parameter.detach()
            if stride > 1 and parameter.numel() > WHOLE_ENTRIES and parameter.is_contiguous():
                view = view.view(-1)[::stride]
            self.places.append(place)
            self.views.append(view)
            self.factors.append(math.sqrt(parameter.numel() / view.numel()) if view.numel() else 1.0)
        self.tensors = [view.clone() for view in self.views]


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
            part.updates = Copy(part.entry)
            recorder.governor.spent("update_ratio", _now() - began)

    def after(self, part):
        copy, part.updates = part.updates, None
        if copy is None or not copy.tensors:
            return
        began = _now()
        import torch

        weights, updates = Reading(self._recorder.selection), Reading(self._recorder.selection)
        weights.take(part, copy.places, copy.tensors)
        changes = torch._foreach_sub(copy.views, copy.tensors)
        updates.take(part, copy.places, changes)
        factors = dict(zip(copy.places, copy.factors))
        part.at_end(lambda done: _finish(done, weights, updates, factors))
        self._recorder.governor.spent("update_ratio", _now() - began)


def _finish(part, weights, updates, factors):
    for reading in (weights, updates):
        reading.weigh(factors)
    before = weights.norm()
    if before > 0.0:
        part.set("update_ratio", updates.norm() / before)
    part.add_rows("update", *updates.cells(part.tensors))


def _followed(parameter):
    import torch

    plain = type(parameter) in (torch.Tensor, torch.nn.Parameter)
    return plain and parameter.requires_grad and parameter.layout is torch.strided and parameter.is_floating_point()
