"""A histogram of durations with fixed bounds, as Prometheus wants it."""

from __future__ import annotations

from bisect import bisect_left

#: From a toy CNN's step to a large model's with accumulation: seconds, upper bounds (inclusive).
STEP_BOUNDS_SECONDS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)


class Durations:
    """Counts a bucket (not cumulative; the last one is beyond every bound), and the sum in seconds."""

    __slots__ = ("bounds_seconds", "counts", "sum_seconds")

    def __init__(self, bounds_seconds: tuple[float, ...] = STEP_BOUNDS_SECONDS) -> None:
        self.bounds_seconds = bounds_seconds
        self.counts = [0] * (len(bounds_seconds) + 1)
        self.sum_seconds = 0.0

    def add(self, seconds: float) -> None:
        """`seconds` must be finite and not negative."""
        self.counts[bisect_left(self.bounds_seconds, seconds)] += 1
        self.sum_seconds += seconds

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """Seconds that this share of the durations did not exceed, rounded up to a bound; 0.0 without durations."""
        wanted, seen = share * self.count, 0
        if not wanted:
            return 0.0
        for bound, count in zip(self.bounds_seconds, self.counts, strict=False):
            seen += count
            if seen >= wanted:
                return bound
        return self.sum_seconds  # beyond every bound
