"""Learning-rate schedulers, held while steps are taken that the training is not to know of."""

import weakref

#: ledger -> (questions, kinds that are wrapped): one wrapper a kind, however many probes come and go.
_held = weakref.WeakKeyDictionary()


def hold(ledger, is_held, postpone=None):
    """Let no scheduler take a step while `is_held(scheduler)` is true: those of torch, and of the user's program so far.

    `postpone(scheduler, args, kwargs)` is told of each step that is not taken. Returns a function that ends it.
    """
    questions, wrapped = _held.setdefault(ledger, ([], set()))

    def held(original):
        def step(self, *args, **kwargs):
            # Without a rate of its own it is being made: its first step belongs to that.
            if hasattr(self, "_last_lr"):
                answers = [(asked(self), told) for asked, told in list(questions)]  # each is asked, since each may count
                if any(is_held for is_held, _ in answers):
                    for told in [told for is_held, told in answers if is_held and told is not None]:
                        told(self, args, kwargs)
                    return None
            return original(self, *args, **kwargs)

        return step

    for kind in _with_a_step():
        if kind not in wrapped:
            wrapped.add(kind)
            ledger.wrap(kind, "step", held)
    question = (is_held, postpone)
    questions.append(question)

    def release():
        if question in questions:
            questions.remove(question)

    return release


def _with_a_step():
    from torch.optim import lr_scheduler

    found, waiting = [], [getattr(lr_scheduler, "LRScheduler", lr_scheduler._LRScheduler), lr_scheduler.ReduceLROnPlateau]
    while waiting:
        kind = waiting.pop()
        if kind not in found:
            found.append(kind)
            waiting += kind.__subclasses__()
    return [kind for kind in found if "step" in vars(kind)]
