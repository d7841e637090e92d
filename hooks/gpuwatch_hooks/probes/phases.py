"""Where the time of a step goes: waiting for data, forward, backward, optimizer, other; the five always add up to the step.

Only data loading, backward and the optimizer have an entrance that can be watched without touching the model. What lies
between them is decided by what comes next: time that ends in a backward was forward, any other was not.
"""

import time

PHASES = ("data", "forward", "backward", "optimizer", "other")


class PhaseClock:
    """A partition of the training thread's time. `now` arguments are perf_counter_ns readings."""

    def __init__(self, now):
        self._spent_ns = dict.fromkeys(PHASES, 0)  # until the step is closed
        self.autocast_forward_ns = 0
        self.autocast = False
        self._since = now
        self._stack = []  # phases that are open; none: between them
        self._between_ns = 0
        self._between_autocast_ns = 0
        self._fresh_data = False

    def enter(self, phase, now, between="other"):
        """`phase` begins, perhaps inside another one (a backward inside a closure inside the optimizer).

        `between`: what the time since the last phase turns out to have been.
        """
        self._advance(now)
        if not self._stack:
            self._settle(between)
        self._stack.append(phase)

    def leave(self, now):
        """The innermost open phase ends."""
        self._advance(now)
        if self._stack:
            self._fresh_data = self._stack.pop() == "data"

    def reset(self, now):
        """A phase was left by an exception that nobody saw: everything open is over."""
        self._advance(now)
        self._stack.clear()

    def set_autocast(self, active, now):
        """Autocast begins or ends. Where no data was fetched before it, it also marks where the forward pass begins."""
        self._advance(now)
        if active and not self.autocast and not self._stack and not self._fresh_data:
            self._settle("other")
        self.autocast = active

    def close_step(self, now):
        """Nanoseconds of each phase since the last call, in the order of PHASES, and of forward under autocast."""
        self._advance(now)
        self._settle("other")
        spent, under = [self._spent_ns[phase] for phase in PHASES], self.autocast_forward_ns
        self._spent_ns = dict.fromkeys(PHASES, 0)
        self.autocast_forward_ns = 0
        self._fresh_data = False
        return spent, under

    def _advance(self, now):
        elapsed = now - self._since
        self._since = now
        if not self._stack:
            self._between_ns += elapsed
            if self.autocast:
                self._between_autocast_ns += elapsed
        else:
            self._spent_ns[self._stack[-1]] += elapsed
            if self.autocast and self._stack[-1] == "forward":
                self.autocast_forward_ns += elapsed

    def _settle(self, phase):
        """What lay between phases was `phase`."""
        self._spent_ns[phase] += self._between_ns
        if phase == "forward":
            self.autocast_forward_ns += self._between_autocast_ns
        self._between_ns = self._between_autocast_ns = 0


class PhasesProbe:
    """Watches the DataLoader's iterators; backward and the optimizer tell the recorder's clock themselves."""

    name = "phases"

    def install(self, recorder):
        self._recorder = recorder
        self._batch_size = None  # of the last loader that was asked, until the first step tells whose it is
        self._batch_told = False
        from torch.utils.data import dataloader

        guard = recorder.session.guard
        recorder.session.ledger.wrap(
            dataloader._BaseDataLoaderIter,
            "__next__",
            lambda original: _timed(original, guard.wrap(self.name, self._begin), guard.wrap(self.name, self._end)),
        )

    def close(self, part):
        """Close the step's clock at `part.ended` and share the time out."""
        clock = self._recorder.clock
        spent, under_autocast = clock.close_step(part.ended)
        if self._batch_size is not None and not self._batch_told:
            self._batch_told = True
            self._recorder.session.meta({"batch_size": self._batch_size})
        if self._recorder.previous_end is None:
            return  # the first step has no beginning
        part.set("step_seconds", sum(spent) * 1e-9)
        for phase, nanoseconds in zip(PHASES, spent):
            part.set(phase + "_seconds", nanoseconds * 1e-9)
        if spent[1] > 0:
            part.set("autocast_ratio", under_autocast / spent[1])

    def _begin(self, iterator):
        recorder = self._recorder
        if not recorder.on_training_thread() or recorder.fetching:
            return False
        recorder.fetching = True
        if not self._batch_told:
            size = getattr(getattr(iterator, "_index_sampler", None), "batch_size", None)
            self._batch_size = size if isinstance(size, int) else None
        recorder.session.guard.run("validation", recorder.by_name["validation"].at_fetch)
        recorder.clock.enter("data", time.perf_counter_ns())
        return True

    def _end(self):
        self._recorder.fetching = False
        self._recorder.clock.leave(time.perf_counter_ns())


def _timed(original, begin, end):
    def fetch(self, *args, **kwargs):
        began = begin(self)
        try:
            return original(self, *args, **kwargs)
        finally:
            if began:
                end()

    return fetch
