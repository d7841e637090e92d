"""How soon a ring must be looked at again, so that it does not come round before it is read.

A wake-up of the daemon costs 0.15 ms and a ring holds seconds of most runs, so it is looked at as seldom as it allows. Its
pace is what it was at its fastest lately: a loop that pauses, for validation or a checkpoint, goes on at once at full speed.
What no past can tell, a slow run that is suddenly fast, is seen between two looks: see glances.py.
"""

from __future__ import annotations

#: A ring may be as full as this when it is looked at, so that a run may become four times as fast from one step to the next;
MAX_FILL_RATIO = 0.25
#: one that is looked at less often than each BRISK_SECONDS, only as this: sixteen times as fast.
CALM_FILL_RATIO = 1 / 16
BRISK_SECONDS = 0.2
#: It is not looked at more often than this, however fast it fills: a turn takes a batch, and says when there is more.
MIN_PERIOD_SECONDS = 0.02
#: Until this many records have been read, or for so long, nobody knows a run's pace: first steps compile, and open files.
UNKNOWN_RECORDS = 64
UNKNOWN_SECONDS = 60.0
UNKNOWN_PERIOD_SECONDS = 0.05
#: A pace is taken over at least this long, or so many records that they matter. A step is a burst of up to six records, and two
#: looks in a row (one record came while the first was read) made thousands a second of them: twelve looks a second for minutes.
SHORTEST_NS = 250_000_000
#: What was the fastest counts half after this time.
HALF_LIFE_SECONDS = 60.0


class Pace:
    """Of one ring with `slot_count` slots, known to this daemon since `now_ns` (CLOCK_MONOTONIC)."""

    def __init__(self, slot_count: int, now_ns: int) -> None:
        self._slot_count = slot_count
        self._since_ns = self._looked_ns = self._counted_ns = now_ns
        self._records = 0
        self._uncounted = 0  # records since `_counted_ns`
        self._begun = False
        self._rings_per_second = 0.0

    def look(self, waiting: int, now_ns: int) -> None:
        """The ring is being read: `waiting` records were written since the last look."""
        self._looked_ns = now_ns
        if not self._begun:  # what waits at the first look has gathered since the process began: that is no pace
            self._begun = waiting > 0
            self._counted_ns = now_ns
            return
        waiting = max(0, waiting)
        self._records += waiting
        self._uncounted += waiting
        elapsed_ns = now_ns - self._counted_ns
        if elapsed_ns < SHORTEST_NS and self._uncounted <= CALM_FILL_RATIO * self._slot_count:
            return
        seconds = max(1e-3, elapsed_ns / 1e9)
        now = self._uncounted / self._slot_count / seconds
        self._rings_per_second = max(now, self._rings_per_second * 0.5 ** (seconds / HALF_LIFE_SECONDS))
        self._uncounted, self._counted_ns = 0, now_ns

    def period_seconds(self, usual_seconds: float) -> float:
        """When to look again: after `usual_seconds`, or sooner."""
        is_known = self._records >= UNKNOWN_RECORDS or self._looked_ns - self._since_ns > UNKNOWN_SECONDS * 1e9
        period_seconds = usual_seconds if is_known else min(usual_seconds, UNKNOWN_PERIOD_SECONDS)
        if self._rings_per_second * period_seconds <= CALM_FILL_RATIO:
            return period_seconds
        calm_seconds = CALM_FILL_RATIO / self._rings_per_second
        brisk_seconds = max(MAX_FILL_RATIO / self._rings_per_second, MIN_PERIOD_SECONDS)
        return min(period_seconds, max(calm_seconds, min(brisk_seconds, BRISK_SECONDS)))
