"""The largest value within sliding windows, from one maximum a second: memory is O(window), a query is a bisection.

A monotone queue: a value that is followed by a larger one can never be a maximum again, so it is dropped when the larger one
arrives. What remains falls from left to right, and the maximum of any window is the first entry inside it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

WINDOWS_SECONDS = {"10s": 10, "60s": 60, "300s": 300}

_LONGEST_NS = max(WINDOWS_SECONDS.values()) * 1_000_000_000


class Peaks:
    """Maxima over the last 10, 60 and 300 seconds of CLOCK_MONOTONIC; minima with `low`."""

    __slots__ = ("_sign", "_times_ns", "_values")

    def __init__(self, *, low: bool = False) -> None:
        self._sign = -1.0 if low else 1.0
        self._times_ns: list[int] = []
        self._values: list[float] = []  # times the sign

    def add(self, monotonic_ns: int, value: float) -> None:
        """`value` was seen at that time, mostly now; the driver's own recordings are told some seconds late."""
        value *= self._sign
        place = bisect_right(self._times_ns, monotonic_ns)
        if place < len(self._values) and self._values[place] >= value:
            return  # something larger came after it
        first = place
        while first and self._values[first - 1] <= value:
            first -= 1
        self._values[first:place] = [value]
        self._times_ns[first:place] = [monotonic_ns]
        expired = bisect_left(self._times_ns, self._times_ns[-1] - _LONGEST_NS)
        if expired:
            del self._times_ns[:expired], self._values[:expired]

    def largest(self, monotonic_ns: int, window_seconds: int) -> float | None:
        """The extreme of the last `window_seconds` before `monotonic_ns`, or None when nothing was measured in it."""
        first = bisect_left(self._times_ns, monotonic_ns - window_seconds * 1_000_000_000)
        return self._sign * self._values[first] if first < len(self._values) else None
