"""Schedulers while a range test runs: no step moves a rate, and those that step once an epoch catch up afterwards.

Only at the end is it known which those are: at the first iteration of a test both kinds may have stepped once.
"""

from . import notices, schedulers


class HeldSchedules:
    """Holds every scheduler's step while `holding`; `iteration()` is the number of the iteration that was taken last."""

    def __init__(self, ledger, iteration):
        self.holding = False
        self._iteration = iteration
        self._counts = {}  # id(scheduler) -> (the last iteration that it stepped in, how many there were)
        self._postponed = []  # (scheduler, arguments of its step), in their order
        self._observed = None  # iterations in all, once the test is over
        self.release = schedulers.hold(ledger, self._is_held, self._postpone)

    def catch_up(self):
        """The test is over and the rates are put back: take the steps of those that step once an epoch."""
        self._observed = self._iteration()
        postponed, self._postponed = self._postponed, []
        holding, self.holding = self.holding, False
        for scheduler, args, kwargs in postponed:
            if self._is_by_epoch(scheduler):
                try:
                    scheduler.step(*args, **kwargs)
                except Exception as error:
                    kind = type(error).__name__
                    notices.say_once("a step of %s was lost in the range test: %s" % (type(scheduler).__name__, kind))
        self.holding = holding

    def _is_held(self, scheduler):
        if self._observed is not None:  # behind the last optimizer step of the test: an epoch may end here
            return self.holding and not self._is_by_epoch(scheduler)
        now = self._iteration()
        last, count = self._counts.get(id(scheduler), (None, 0))
        if last != now:
            self._counts[id(scheduler)] = (now, count + 1)
        return self.holding

    def _is_by_epoch(self, scheduler):
        """Whether it stepped in less than half of the iterations, the ordinary first one among them."""
        return 2 * self._counts.get(id(scheduler), (None, 0))[1] < self._observed

    def _postpone(self, scheduler, args, kwargs):
        from torch.optim.lr_scheduler import ReduceLROnPlateau

        # A plateau's metric was measured on the test's weights: it says nothing of the training.
        if self._observed is None and not isinstance(scheduler, ReduceLROnPlateau):
            self._postponed.append((scheduler, args, kwargs))
