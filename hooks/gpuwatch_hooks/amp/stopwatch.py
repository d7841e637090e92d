"""Times of steps: by CUDA events, which do not wait for the device, or by the clock on a CPU."""

import sys
import time


class Stopwatch:
    """`lap()` between steps; `laps()` gives back what is known by then: (label, seconds, peak bytes of that lap)."""

    def __init__(self, device):
        self._cuda = sys.modules["torch"].cuda if device.type == "cuda" else None
        self._device = device
        self._last = None
        self._waiting = []

    def lap(self, label):
        """A step has ended; `label` belongs to the time since the last lap, None when that time is nobody's."""
        now = self._mark()
        if self._last is not None and label is not None:
            self._waiting.append((label, self._last, now, self.peak_bytes()))
        self._last = now

    def laps(self, wait=False):
        """[(label, seconds, peak bytes)] whose end the device has reached; all of them with `wait`, which waits for it."""
        done = []
        while self._waiting:
            label, began, ended, peak = self._waiting[0]
            if self._cuda is not None:
                if wait:
                    ended.synchronize()
                elif not ended.query():
                    break
                seconds = began.elapsed_time(ended) / 1e3
            else:
                seconds = ended - began
            done.append((label, seconds, peak))
            self._waiting.pop(0)
        return done

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
