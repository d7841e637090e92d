"""The daemon's own counters: what it refused, lost and failed at, and which of its components work.

Every loss has a name. Written by the main thread and by each component's own thread, read by the exporters: one lock, held
for a dictionary operation.
"""

from __future__ import annotations

import threading
import time
from collections import Counter

import msgspec


class ComponentState(msgspec.Struct):
    """How one component is doing. `last_beat_ns`: CLOCK_MONOTONIC, when it last finished a turn; 0: never."""

    up: bool = False
    failures: int = 0
    last_error: str = ""
    last_beat_ns: int = 0
    duration_seconds: float = 0.0  # of its latest turn
    stale_after_seconds: float = 0.0  # a component that owes a beat this often is down without one; 0: owes none


class SelfStats:
    """Counters by name, each with one label value (often empty), and the components' states."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: Counter[tuple[str, str]] = Counter()
        self._components: dict[str, ComponentState] = {}
        self.started_ns = time.monotonic_ns()

    def count(self, name: str, label: str = "", amount: int = 1) -> None:
        """Add to a counter, for example count("peers_refused", "per_uid_limit"). The names are code, never input."""
        with self._lock:
            self._counters[name, label] += amount

    def counters(self) -> dict[tuple[str, str], int]:
        """A copy of all counters: (name, label) -> value."""
        with self._lock:
            return dict(self._counters)

    def value(self, name: str, label: str = "") -> int:
        with self._lock:
            return self._counters[name, label]

    def expect(self, component: str, stale_after_seconds: float = 0.0) -> None:
        """Make a component known, down until its first beat, so that one which never starts is not simply missing."""
        with self._lock:
            self._components.setdefault(component, ComponentState()).stale_after_seconds = stale_after_seconds

    def beat(self, component: str, duration_seconds: float = 0.0) -> None:
        """The component finished a turn and works."""
        with self._lock:
            state = self._components.setdefault(component, ComponentState())
            state.up, state.last_error = True, ""
            state.last_beat_ns, state.duration_seconds = time.monotonic_ns(), duration_seconds

    def fail(self, component: str, error: str) -> None:
        """The component's turn failed: it is down until its next beat."""
        with self._lock:
            state = self._components.setdefault(component, ComponentState())
            state.up, state.last_error, state.failures = False, error, state.failures + 1

    def components(self, now_ns: int | None = None) -> dict[str, ComponentState]:
        """A copy of the components' states; one whose beat is overdue (hung) is down here."""
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        with self._lock:
            copies = {name: msgspec.structs.replace(state) for name, state in self._components.items()}
        for state in copies.values():
            overdue_ns = now_ns - state.last_beat_ns - state.stale_after_seconds * 1e9
            if state.up and state.stale_after_seconds and overdue_ns > 0:
                state.up = False
                state.last_error = f"no sign of life for {(now_ns - state.last_beat_ns) / 1e9:.0f} s"
        return copies
