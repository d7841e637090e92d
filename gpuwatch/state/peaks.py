"""The largest value within sliding windows, from one maximum a second: memory is O(window), a query is a bisection.

A monotone queue: a value that is followed by a larger one can never be a maximum again, so it is dropped when the larger one
arrives. What remains falls from left to right, and the maximum of any window is the first entry inside it.
"""

from __future__ import annotations

from bisect import bisect_left

WINDOWS_SECONDS = {"10s": 10, "60s": 60, "300s": 300}

_LONGEST_NS = max(WINDOWS_SECONDS.values()) * 1_000_000_000


class Peaks:
    """Maxima over the last 10, 60 and 300 seconds of CLOCK_MONOTONIC."""

    __slots__ = ("_times_ns", "_values")

    def __init__(self) -> None:
        self._times_ns: list[int] = []
        self._values: list[float] = []

    def add(self, monotonic_ns: int, value: float) -> None:
        """`value` is the largest since the previous call; times must not go back."""
        while self._values and self._values[-1] <= value:
            self._values.pop()
            self._times_ns.pop()
        self._times_ns.append(monotonic_ns)
        self._values.append(value)
        expired = bisect_left(self._times_ns, monotonic_ns - _LONGEST_NS)
        if expired:
            del self._times_ns[:expired], self._values[:expired]

    def largest(self, monotonic_ns: int, window_seconds: int) -> float | None:
        """The largest value of the last `window_seconds` before `monotonic_ns`, or None when nothing was measured in it."""
        first = bisect_left(self._times_ns, monotonic_ns - window_seconds * 1_000_000_000)
        return self._values[first] if first < len(self._values) else None
