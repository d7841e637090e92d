"""A state over a temporary log directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpuwatch.state.store import State
from tests.state.recorded import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_state(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., State]]:
    """Makes daemons, one after the other, over one log directory; each is closed at the end."""
    made: list[State] = []

    def make(**limits: int) -> State:
        state = State(str(tmp_path / "runs"), monotonic_ns=clock, wall_seconds=lambda: 1e9 + clock.ns / 1e9, **limits)
        made.append(state)
        return state

    yield make
    for state in made:
        state.close()
