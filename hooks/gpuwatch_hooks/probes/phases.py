"""Where the time of a step goes: waiting for data, forward, backward, optimizer, other; the five always add up to the step.

Only data loading, backward and the optimizer have an entrance that can be watched without touching the model. What lies
between them is decided by what comes next: time that ends in a backward was forward, any other was not.
"""

import sys
import time

PHASES = ("data", "forward", "backward", "optimizer", "other")
_NOTHING = dict.fromkeys(PHASES, 0)
_SECONDS = [phase + "_seconds" for phase in PHASES]


class PhaseClock:
    """A partition of the training thread's time. `now` arguments are perf_counter_ns readings."""

    def __init__(self, now):
        self._spent_ns = dict(_NOTHING)  # until the step is closed
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
        elapsed = now - self._since
        self._since = now
        stack = self._stack
        if stack:
            self._add(stack[-1], elapsed)
        else:
            self._between(elapsed)
            self._settle(between)
        stack.append(phase)

    def leave(self, now):
        """The innermost open phase ends."""
        elapsed = now - self._since
        self._since = now
        if self._stack:
            phase = self._stack.pop()
            self._add(phase, elapsed)
            self._fresh_data = phase == "data"
        else:
            self._between(elapsed)

    def turn(self, phase, now):
        """The innermost open phase ends, and `phase` begins at once."""
        stack = self._stack
        if not stack:
            self.enter(phase, now)
            return
        self._add(stack[-1], now - self._since)
        self._since = now
        stack[-1] = phase
        self._fresh_data = False

    def reset(self, now):
        """A phase was left by an exception that nobody saw: everything open is over."""
        while self._stack:
            self.leave(now)

    def set_autocast(self, active, now):
        """Autocast begins or ends. Where no data was fetched before it, it also marks where the forward pass begins."""
        elapsed = now - self._since
        self._since = now
        if self._stack:
            self._add(self._stack[-1], elapsed)
        else:
            self._between(elapsed)
            if active and not self.autocast and not self._fresh_data:
                self._settle("other")
        self.autocast = active

    def close_step(self, now):
        """Nanoseconds of each phase since the last call, in the order of PHASES, and of forward under autocast."""
        elapsed = now - self._since
        self._since = now
        if self._stack:
            self._add(self._stack[-1], elapsed)
        else:
            self._between(elapsed)
        if self._between_ns:
            self._settle("other")
        spent, self._spent_ns = self._spent_ns, dict(_NOTHING)
        under, self.autocast_forward_ns = self.autocast_forward_ns, 0
        self._fresh_data = False
        return list(spent.values()), under

    def _add(self, phase, elapsed):
        self._spent_ns[phase] += elapsed
        if self.autocast and phase == "forward":
            self.autocast_forward_ns += elapsed

    def _between(self, elapsed):
        self._between_ns += elapsed
        if self.autocast:
            self._between_autocast_ns += elapsed

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

        begin, end = recorder.hook(self.name, self._begin, False), recorder.hook(self.name, self._end)
        recorder.session.ledger.wrap(dataloader._BaseDataLoaderIter, "__next__", lambda original: _timed(original, begin, end))

    def close(self, part):
        """Close the step's clock at `part.ended` and share the time out."""
        clock = self._recorder.clock
        spent, under_autocast = clock.close_step(part.ended)
        if self._batch_size is not None and not self._batch_told:
            self._batch_told = True
            self._recorder.session.meta({"batch_size": self._batch_size})
        if self._recorder.previous_end is None:
            return  # the first step has no beginning
        fields = part.fields
        fields["step_seconds"] = sum(spent) * 1e-9
        for name, nanoseconds in zip(_SECONDS, spent):
            fields[name] = nanoseconds * 1e-9
        if spent[1] > 0:
            fields["autocast_ratio"] = under_autocast / spent[1]

    def _begin(self, iterator):
        recorder = self._recorder
        if recorder.fetching:
            return False
        recorder.fetching = True
        if not self._batch_told:
            size = getattr(getattr(iterator, "_index_sampler", None), "batch_size", None)
            self._batch_size = size if isinstance(size, int) else None
        if not sys.modules["torch"].is_grad_enabled():
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
