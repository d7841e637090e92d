"""Whether the loop clears its gradients: `zero_grad` forgotten, or called on another model, is never an error by itself.

No value is read. One tensor of each optimizer is looked at when a backward call begins: a gradient that is still the same
object in the same version as the last step, or the last backward, left it has not been cleared since.
"""

import weakref

#: Steps running before it is told: an optimizer's first steps may be part of setting up.
TOLD_AFTER = 3


class _Watched:
    """One optimizer's tensor."""

    __slots__ = ("backwards", "cleared", "in_a_row", "mark", "reference")

    def __init__(self, parameter):
        self.reference = weakref.ref(parameter)
        self.in_a_row = 0
        self.backwards = 0
        self.cleared = True
        self.mark = None

    def present(self):
        """What tells that nobody has touched the gradient: None when there is none."""
        parameter = self.reference()
        gradient = parameter.grad if parameter is not None else None
        return None if gradient is None else (id(gradient), gradient._version)


class ClearingProbe:
    """See the module. The loss probe tells when a backward begins and ends."""

    name = "clearing"

    def install(self, recorder):
        self._recorder = recorder
        self._watched = {}  # entry index -> _Watched

    def at_backward(self):
        """A backward call begins."""
        for watched in self._watched.values():
            if not watched.cleared:
                watched.cleared = watched.mark is None or watched.present() != watched.mark

    def after_backward(self):
        """It has ended, and has added to the gradients."""
        for watched in self._watched.values():
            if not watched.cleared:
                watched.mark = watched.present()

    def after(self, part):
        """The optimizer has stepped: judge what lies between its last two steps, and begin anew."""
        entry = part.entry
        watched = self._watched.get(entry.index)
        if watched is None or watched.reference() is None:
            parameter = next((p for p in entry.parameters if p.grad is not None), None)
            if parameter is None:
                return
            watched = self._watched[entry.index] = _Watched(parameter)
        elif watched.backwards != self._recorder.backwards:
            kept = watched.in_a_row + 1 if not watched.cleared else 0
            before, watched.in_a_row = watched.in_a_row, kept
            if kept == TOLD_AFTER or (before >= TOLD_AFTER and not kept):
                self._tell(part, watched, kept)
        watched.backwards = self._recorder.backwards
        watched.mark = watched.present()
        watched.cleared = watched.mark is None

    def _tell(self, part, watched, kept):
        places = [place for place, p in enumerate(part.entry.parameters) if p is watched.reference()]
        name = part.entry.names[places[0]] if places and places[0] < len(part.entry.names) else ""
        first_step = part.step - kept + 1 if kept else part.step
        self._recorder.session.event("gradients_kept", first_step, 1.0 if kept else 0.0, name)
