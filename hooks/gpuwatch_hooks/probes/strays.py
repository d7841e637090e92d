"""Tensors of the model that get gradients and are in no optimizer, when an optimizer holds tensors that get none.

Both together say that the optimizer was made before a part of the model was replaced. Either alone is common and wanted: a
head that is trained on a trunk which was never frozen, an auxiliary output that is not used.
"""

from .. import discovery

#: Steps of an optimizer at which it is looked for: it walks the model's parameters (some 50 us for 150 tensors).
LOOKS = frozenset(1 << power for power in range(2, 40))


class StraysProbe:
    """See the module."""

    name = "strays"

    def install(self, recorder):
        self._recorder = recorder

    def after(self, part):
        entry = part.entry
        if entry.steps not in LOOKS or not part.get("tensors_without_gradient"):
            return
        held = {id(p) for other in self._recorder.roster for p in other.parameters}
        strays = [
            name
            for reference in entry.roots
            for name, p in _named(reference())
            if p.requires_grad and p.grad is not None and id(p) not in held
        ]
        if not strays:
            return
        for optimizer in discovery.optimizers_in_sight():  # one that has not stepped yet
            held.update(id(p) for group in optimizer.param_groups for p in group["params"])
        strays = [name for reference in entry.roots for name, p in _named(reference()) if name in strays and id(p) not in held]
        if strays:
            self._recorder.session.event("untrained_parameters", part.step, float(len(strays)), discovery.stripped(strays[0]))


def _named(module):
    return module.named_parameters() if module is not None else ()
