"""Times of steps: by CUDA events, which do not wait for the device, or by the clock on a CPU.

Inside a lap two things are timed apart and are no part of its seconds: the optimizer's update, which dropped steps do not
take, and our own keeping of what will be put back, which the training would not do.
"""

import collections
import sys
import time

UPDATE, OURS = "update", "ours"


#: `seconds`: without what was timed apart; `update_seconds`: the optimizers' updates in it.
Lap = collections.namedtuple("Lap", "label seconds peak_bytes update_seconds")


class Stopwatch:
    """`lap()` between steps; `laps()` gives back what is known by then."""

    def __init__(self, device):
        self._cuda = sys.modules["torch"].cuda if device.type == "cuda" else None
        self._device = device
        self._last = None
        self._waiting = []
        self._apart = []  # (UPDATE or OURS, began, ended) of the lap that is under way
        self._open = None  # (UPDATE or OURS, began)

    def lap(self, label):
        """A step has ended; `label` belongs to the time since the last lap, None when that time is nobody's."""
        now = self._mark()
        if self._last is not None and label is not None:
            self._waiting.append((label, self._last, now, self.peak_bytes(), self._apart))
        self._last, self._apart, self._open = now, [], None

    def apart(self, kind):
        """What follows, until `together`, is timed apart: UPDATE or OURS."""
        self._open = (kind, self._mark())

    def together(self):
        """The end of what `apart` began; nothing when nothing was."""
        if self._open is not None:
            self._apart.append((*self._open, self._mark()))
            self._open = None

    def laps(self, wait=False):
        """Those laps whose end the device has reached; all of them with `wait`, which waits for it."""
        done = []
        while self._waiting:
            label, began, ended, peak, apart = self._waiting[0]
            if self._cuda is not None:
                if wait:
                    ended.synchronize()
                elif not ended.query():
                    break
            taken = {UPDATE: 0.0, OURS: 0.0}
            for kind, start, end in apart:
                taken[kind] += self._between(start, end)
            seconds = self._between(began, ended) - taken[UPDATE] - taken[OURS]
            done.append(Lap(label, seconds, peak, taken[UPDATE]))
            self._waiting.pop(0)
        return done

    def _between(self, began, ended):
        return ended - began if self._cuda is None else began.elapsed_time(ended) / 1e3

    def is_empty(self):
        """Whether every lap has been given back."""
        return not self._waiting

    def forget_peak(self):
        """Begin a new peak: that of the block that begins now."""
        if self._cuda is not None:
            self._cuda.reset_peak_memory_stats(self._device)

    def peak_bytes(self):
        return float(self._cuda.max_memory_allocated(self._device)) if self._cuda is not None else 0.0

    def _mark(self):
        if self._cuda is None:
            return time.perf_counter()
        event = self._cuda.Event(enable_timing=True)
        event.record()
        return event
