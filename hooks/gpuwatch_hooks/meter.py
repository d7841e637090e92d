"""What the hooks take of the training thread, counted where they are entered, so that no hook is forgotten.

Not seen: the call from a patched function to its wrapper (some 0.2 us each), and what the hooks' own code leaves for the
job's next operators to fetch into the caches again. `bench_overhead.py` compares with the whole truth.
"""

import threading


class Meter:
    """Nanoseconds of perf_counter_ns on one thread; `since`: when the outermost hook that runs was entered, 0 for none."""

    __slots__ = ("since", "taken_ns", "thread")

    def __init__(self):
        self.thread = threading.main_thread().ident  # the one that is recorded
        self.since = 0
        self.taken_ns = 0

    def cut(self, now):
        """What was taken until `now` and since the last cut, inside a hook or outside of any."""
        taken, self.taken_ns = self.taken_ns, 0
        if self.since:
            taken += now - self.since
            self.since = now
        return taken
