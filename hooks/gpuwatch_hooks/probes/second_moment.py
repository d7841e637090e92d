"""Adam's precursor of a spike: how large gradients are beside the second moment that Adam divides them by.

The norm of a tensor's gradient over the root of the sum of its v, with Adam's bias correction, is near 1 in a run that goes
its way. Well above, the moment has not followed the gradient yet, and the steps are that much larger than the learning rate
says. Taken entry by entry the quotient would speak of units that fire for the first time. `v` is what the optimizer keeps
anyway, so nothing is added; some tensors are looked at each time, and of large ones some entries.
"""

import math
import time
from array import array

from .. import wire

_now = time.perf_counter_ns
#: Tensors looked at each time, in turn, and entries of each, at most.
TENSORS = 16
ENTRIES = 1 << 16
#: Before that many steps the moment is a mean of too few gradients.
SETTLED_STEPS = 20


class SecondMomentProbe:
    """Measured together with the update ratio, and thinned with it."""

    name = "second_moment"
    sampled = True

    def install(self, recorder):
        self._recorder = recorder
        self._turns = {}  # entry index -> place of the first tensor to look at next

    def before(self, part):
        recorder, entry = self._recorder, part.entry
        if part.closure_calls is not None or "update_ratio" not in part.due:
            return
        optimizer = entry.optimizer() if entry.optimizer is not None else None
        if optimizer is None or "betas" not in optimizer.defaults:
            return
        began = _now()
        chosen = self._choose(entry, optimizer)
        if chosen:
            self._measure(part, chosen, recorder.by_name["loss_scale"].to_true_units(entry))
        recorder.governor.spent("update_ratio", _now() - began)

    def _choose(self, entry, optimizer):
        """(place, gradient, moment, bias correction) of the tensors whose turn it is."""
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        count = len(entry.parameters)
        first = self._turns.get(entry.index, 0)
        chosen = []
        for offset in range(count):
            place = (first + offset) % count
            parameter = entry.parameters[place]
            found = _moment(parameter, optimizer.state.get(parameter), groups.get(id(parameter)))
            if found is not None:
                chosen.append((place, *found))
                if len(chosen) == TENSORS or chosen[0][1].device != found[0].device:
                    break
        self._turns[entry.index] = (chosen[-1][0] + 1) % count if chosen else 0
        return chosen

    def _measure(self, part, chosen, scale):
        import torch

        with torch.no_grad():
            gradients = torch.stack(torch._foreach_norm([gradient for _, gradient, _, _ in chosen]))
            moments = torch.stack(torch._foreach_norm([moment for _, _, moment, _ in chosen], 1))  # of what is never negative
        places = [(place, correction) for place, _, _, correction in chosen]
        read = [gradients, moments] if scale is None else [gradients, moments, scale]
        part.read(read, lambda *values: part.at_end(_finish(places, *values)))


def _finish(places, gradients, moments, scale=(1.0,)):
    def finish(part):
        cells = array("f", [math.nan]) * (part.tensors * len(wire.TENSOR_COLUMNS))
        for (place, correction), gradient, moment in zip(places, gradients, moments):
            if moment > 0.0:
                cells[place * len(wire.TENSOR_COLUMNS)] = gradient * scale[0] / math.sqrt(moment / correction)
        part.add_rows("second_moment", cells, 1)

    return finish


def _moment(parameter, state, group):
    """(entries of the gradient, the same of the moment, bias correction) of a matrix that Adam has seen often enough."""
    gradient, moment = parameter.grad, (state or {}).get("exp_avg_sq")
    if gradient is None or moment is None or group is None or parameter.dim() < 2:
        return None
    alike = type(moment) is type(gradient) and moment.dtype == gradient.dtype and moment.device == gradient.device
    steps = state.get("step", 0)
    if not alike or gradient.is_sparse or not (gradient.is_contiguous() and moment.is_contiguous()):
        return None
    if getattr(getattr(steps, "device", None), "type", "cpu") != "cpu" or not steps >= SETTLED_STEPS:
        return None  # a count on the device: reading it would wait
    stride = 1 if gradient.numel() <= ENTRIES else gradient.numel() // ENTRIES | 1
    correction = 1.0 - float(group["betas"][1]) ** float(steps)
    flat, squares = gradient.detach().view(-1), moment.detach().view(-1)
    return flat[::stride], squares[::stride], correction
