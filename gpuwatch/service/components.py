"""Parts of the daemon that may fail alone: each says whether it works, and is tried again with back-off.

What takes a bounded time runs on the main thread under a Guard. What may wait for a disk or a peer runs as a
Worker, in a thread of its own: when it hangs, its heartbeat stops, and it is reported down while the rest goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from gpuwatch.selfstats import SelfStats

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 30.0


class Guard:
    """Runs one component's turns, each `period_seconds`. `turn` may raise anything; it costs nobody else anything."""

    def __init__(
        self,
        name: str,
        turn: Callable[[], object],
        stats: SelfStats,
        period_seconds: float = 0.0,
        stale_after_seconds: float = 0.0,
    ) -> None:
        self.name = name
        self._turn = turn
        self._stats = stats
        self._period_seconds = period_seconds
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._next_at = 0.0
        stats.expect(name, stale_after_seconds)

    def run(self) -> None:
        """A turn, if one is due; after a failure the next one is due later and later."""
        began = time.monotonic()
        if began < self._next_at:
            return
        try:
            self._turn()
        except Exception as error:
            log.exception("%s failed; next try in %.0f s", self.name, self._retry_seconds)
            self._stats.fail(self.name, f"{type(error).__name__}: {error}")
            self._next_at = time.monotonic() + self._retry_seconds
            self._retry_seconds = min(2 * self._retry_seconds, LAST_RETRY_SECONDS)
        else:
            self._stats.beat(self.name, time.monotonic() - began)
            self._next_at = began + self._period_seconds
            self._retry_seconds = FIRST_RETRY_SECONDS


class Worker:
    """A component with a thread: a turn at once, one each `period_seconds`, sooner after `hurry`, and a last one at the end."""

    def __init__(
        self, name: str, turn: Callable[[], object], stats: SelfStats, period_seconds: float, stale_after_seconds: float = 15.0
    ) -> None:
        self._guard = Guard(name, turn, stats, stale_after_seconds=stale_after_seconds)
        self._period_seconds = period_seconds
        self._stopping = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"gpuwatch-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def hurry(self) -> None:
        """Have the next turn at once. Any thread may ask, and is not kept."""
        self._wake.set()

    def stop(self, timeout_seconds: float) -> bool:
        """Have the last turn and wait for its end. False when the thread hangs; it dies with the process."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stopping  # read first: the turn behind it then sees everything that was there at the stop
            self._guard.run()
            if not stopping:
                self._wake.wait(self._period_seconds)
                self._wake.clear()
