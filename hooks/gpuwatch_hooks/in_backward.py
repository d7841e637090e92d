"""Optimizers that step while backward still runs, usually one for each parameter: gradients never exist all at once.

Their steps are gathered into one part, as if one optimizer had stepped, and published when the outermost backward ends.
"""

import sys


def running():
    """Whether the caller is inside a backward pass."""
    return sys.modules["torch"]._C._current_graph_task_id() != -1


class InBackward:
    """The steps of one backward pass; the engine's threads call it one at a time, while the training thread waits."""

    def __init__(self, recorder):
        self._recorder = recorder
        self._entry = None
        self._parameters = {}  # id -> parameter, of all passes, in the order of their first step
        self._places = {}
        self._optimizers = {}  # id -> optimizer, of this pass

    def before_step(self, optimizer):
        """Measure the gradients that this optimizer is about to use."""
        roster = self._recorder.roster
        if self._entry is None:
            self._entry = roster.add("%s (in backward)" % type(optimizer).__name__)
        part = self._recorder.open_for(self._entry)
        if part.gradients is None:
            part.gradients = self._recorder.by_name["gradients"].begin(self._entry)
        self._optimizers[id(optimizer)] = optimizer
        places, tensors = [], []
        for parameter in [p for group in optimizer.param_groups for p in group["params"]]:
            place = self._places.setdefault(id(parameter), len(self._parameters))
            self._parameters[id(parameter)] = parameter
            if parameter.grad is not None:
                places.append(place)
                tensors.append(parameter.grad)
        reading = part.gradients.reading
        reading.measure(part, places, tensors)  # one tensor at a time: the fused kernel's beginning would cost more
        if "layers" in part.due:
            part.gradients.detailed = True
            reading.detail(part, places, tensors)

    def finish(self, now):
        """The outermost backward has ended at perf_counter_ns `now`: publish what stepped inside it, if anything did."""
        if not self._optimizers:
            return
        part = self._recorder.open_for(self._entry)
        part.several = list(self._optimizers.values())
        self._optimizers = {}
        self._recorder.roster.adopt(self._entry, list(self._parameters.values()))
        missing = len(self._parameters) - len(part.gradients.reading.entries)
        part.set("tensors_without_gradient", float(missing))
        self._recorder.close_part(part, now)
