"""Between two looks at the rings, glances at their heads: a run that was slow for long may be fast from one step to the next.

A look at every ring and at all that is due costs the daemon 0.15 ms, a glance 0.06 ms, nearly all of it for waking up. So
rings are looked at as seldom as their pace allows, and nothing is lost where that changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from gpuwatch.intake.pace import CALM_FILL_RATIO
from gpuwatch.intake.sessions import Session

#: More records a second than torch's smallest steps make: 1,600 were measured, a step of 0.64 ms; three a step at most.
HIGHEST_RECORDS_PER_SECOND = 6000.0
#: A run that becomes so fast right behind a glance has filled as much of its ring at the next one.
FILL_RATIO = 0.9
#: A ring of a few slots is not worth more glances than this.
SHORTEST_SECONDS = 0.05


def wait(
    dispatch: Callable[[float], bool],
    sessions: Collection[Session],
    patience_seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Until `dispatch`, which waits for so many seconds, says that a look is due, a ring fills, or the patience is over."""
    until, period_seconds = clock() + patience_seconds, _period_seconds(sessions)
    while not dispatch(min(patience_seconds, period_seconds)):
        patience_seconds = until - clock()
        if patience_seconds < 0.001 or _any_is_filling(sessions):
            return


def _period_seconds(sessions: Collection[Session]) -> float:
    fewest = min((session.reader.slot_count for session in sessions), default=None)
    return float("inf") if fewest is None else max(SHORTEST_SECONDS, FILL_RATIO * fewest / HIGHEST_RECORDS_PER_SECOND)


def _any_is_filling(sessions: Collection[Session]) -> bool:
    for session in sessions:  # a plain loop: between two sleeps code is cold, and each function more costs 5 us
        reader = session.reader
        if reader.waiting > CALM_FILL_RATIO * reader.slot_count:
            return True
    return False
