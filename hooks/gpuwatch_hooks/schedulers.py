"""Learning-rate schedulers, held while steps are taken that the training is not to know of."""


def hold(ledger, is_held):
    """Let no scheduler take a step while `is_held()` is true: those of torch, and of the user's program so far."""

    def held(original):
        def step(*args, **kwargs):
            return None if is_held() else original(*args, **kwargs)

        return step

    for kind in _with_a_step():
        ledger.wrap(kind, "step", held)


def _with_a_step():
    from torch.optim import lr_scheduler

    found, waiting = [], [getattr(lr_scheduler, "LRScheduler", lr_scheduler._LRScheduler), lr_scheduler.ReduceLROnPlateau]
    while waiting:
        kind = waiting.pop()
        if kind not in found:
            found.append(kind)
            waiting += kind.__subclasses__()
    return [kind for kind in found if "step" in vars(kind)]
