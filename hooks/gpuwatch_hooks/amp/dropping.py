"""Steps that leave nothing behind: their gradients are hidden from the optimizers, and everything else is put back.

The hooks sit on the optimizers themselves and not in the session's ledger: when the hooks are taken out in the middle of such
a step, from another thread or between two bytecodes of this one, it still has to end as it began. They then go with it.
"""

from .. import keepsake, patching, stepping, untraced
from . import stopwatch


class Dropping:
    """While `on` is set, each step of `optimizers` is dropped. `opening` before its first forward pass, `ended` behind it.

    `watch`, a Stopwatch, is told of the updates, of those too that are taken while `on` is not set.
    """

    def __init__(self, modules, optimizers, scalers, watch):
        self.on = False
        self.count = 0
        self._watch = watch
        self._modules, self._scalers = modules, scalers
        self._optimizers = list(optimizers)
        self._kept = None
        self._scalers_kept = None  # of the last dropped step, whose `update` comes behind `optimizer.step`
        self._under_way = False
        self._over = False
        self._stepped = set()  # ids of the optimizers that have taken this step
        self._depths = {}  # id(optimizer) -> how many of its steps are running, one inside the other
        self._hidden = {}  # id(optimizer) -> [(parameter, gradient)]
        self._ledger = patching.Ledger()
        for optimizer in self._optimizers:
            self._ledger.hook(optimizer.register_step_pre_hook, lambda *call: self._before(*call))  # noqa: PLW0108 - a method takes no mark
            self._ledger.hook(optimizer.register_step_post_hook, lambda *call: self._after(*call))  # noqa: PLW0108

    def opening(self):
        """A forward pass begins. False: it is to be an ordinary one, since the hooks are going."""
        if self._over:
            return False
        if self._scalers_kept is not None:
            self._scalers_kept.restore_scalers()
            self._scalers_kept = None
        if self.on and not self._under_way:
            self._under_way = True
            if self._over:  # read behind the mark: `leave` looks at them in the other order
                self._under_way = False
                return False
            self._watch.apart(stopwatch.OURS)
            if self._kept is None or not self._kept.renew():
                self._kept = keepsake.Keepsake(self._modules, (), self._scalers, weights=False)
            self._watch.together()
        return True

    def ended(self):
        """Every optimizer has taken the step, or skipped it: as before."""
        if self._under_way:
            self._under_way = False
            self.count += 1
            self._kept.restore()
            self._scalers_kept = self._kept
        self._stepped.clear()

    def leave(self):
        """No more steps are dropped; one that is under way still ends as one. From any thread."""
        self._over = True
        if not self._under_way:
            self._ledger.remove()

    def _before(self, optimizer, args, kwargs):
        depth = self._depths.get(id(optimizer), 0)
        if depth and stepping.depth() < 2:  # its last step ended in an exception
            depth = 0
        self._depths[id(optimizer)] = depth + 1
        if depth or id(optimizer) in self._stepped:  # a subclass that calls super().step(): torch hooks both
            return None
        closure = kwargs.get("closure") if "closure" in kwargs else args[1] if len(args) > 1 else None
        if not callable(closure):
            self._hide(optimizer)
            self._watch.apart(stopwatch.UPDATE)
            return None

        def dropped(*closure_args, **closure_kwargs):
            result = closure(*closure_args, **closure_kwargs)
            self._hide(optimizer)
            self._watch.apart(stopwatch.UPDATE)
            return result

        untraced.hide(dropped)
        return (args, dict(kwargs, closure=dropped)) if "closure" in kwargs else ((args[0], dropped, *args[2:]), kwargs)

    def _hide(self, optimizer):
        if not self._under_way:
            return
        hidden = self._hidden.setdefault(id(optimizer), [])
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    hidden.append((parameter, parameter.grad))
                    parameter.grad = None

    def _after(self, optimizer, _args, _kwargs):
        self._depths[id(optimizer)] = depth = self._depths.get(id(optimizer), 1) - 1
        if depth > 0:
            return
        self._watch.together()
        for parameter, gradient in self._hidden.pop(id(optimizer), ()):
            if parameter.grad is None:
                parameter.grad = gradient
        if self._under_way:
            self._stepped.add(id(optimizer))
            if self._over and all(id(one) in self._stepped for one in self._optimizers):
                self.ended()
                self._ledger.remove()
