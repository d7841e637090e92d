"""Steps and moments to the detectors, findings back to the state: on a thread of its own, so that a rule may even hang."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import msgspec
from gpuwatch_hooks import wire

from gpuwatch.detectors.engine import Engine
from gpuwatch.judging.moments import Moments
from gpuwatch.selfstats import SelfStats
from gpuwatch.state.findings import Finding
from gpuwatch.state.records import HistogramRows
from gpuwatch.state.runs import Run
from gpuwatch.state.steps import Step
from gpuwatch.state.store import State

#: What may wait to be judged; steps over it are counted and not judged.
MAX_WAITING_STEPS = 1000
#: More than this share of either limit is not kept waiting for the next turn.
HURRY_RATIO = 0.25
MAX_WAITING_BYTES = 8 << 20  # of tables: 5 KiB a step for 150 tensors, 43 KiB with the histograms of their gradients
#: How often the rules look at the moment of each run.
MOMENT_SECONDS = 1.0
_FLOAT16 = wire.AUTOCAST_DTYPES.index("float16")


class Judge:
    """`hear` is State.on_step's callback; `turn` is called from the judging thread alone."""

    def __init__(self, engine: Engine, state: State, stats: SelfStats) -> None:
        self._engine = engine
        self._state = state
        self._stats = stats
        self.hurry: Callable[[], None] = lambda: None  # asks for a turn before the next one is due
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Run, Step, int]] = deque()  # the step's run, and the bytes of its tables
        self._waiting_bytes = 0
        self._known: dict[str, Run] = {}  # runs that the engine holds rules for
        self._moments = Moments(state, stats)
        self._next_moment = 0.0  # time.monotonic()

    def hear(self, run: Run, step: Step) -> None:
        """A step is final."""
        histograms = _wanted(step)
        size_bytes = sum(len(rows.cells) for rows in step.tensors) + sum(len(rows.buckets) for rows in histograms)
        with self._lock:
            if len(self._waiting) < MAX_WAITING_STEPS and self._waiting_bytes + size_bytes <= MAX_WAITING_BYTES:
                self._waiting_bytes += size_bytes
                self._waiting.append((run, msgspec.structs.replace(step, histograms=histograms), size_bytes))
                filled = max(len(self._waiting) / MAX_WAITING_STEPS, self._waiting_bytes / MAX_WAITING_BYTES)
                if filled > HURRY_RATIO:
                    self.hurry()
                return
        self._stats.count("steps_not_judged")

    def turn(self) -> None:
        """Judge what waits, look at the moment when it is time, then close the findings of the runs that have ended."""
        with self._state.lock:  # a run's end and its last step arrive in one piece
            for run in self._state.runs.values():
                if run.status == "live":
                    self._known[run.directory] = run
            ended = [run for run in self._known.values() if run.status != "live"]
        self._judge_waiting()
        self._look(ended)
        for run in ended:
            del self._known[run.directory]
            self._moments.forget(run)
            self._report(run, self._engine.end(run))

    def _look(self, ended: list[Run]) -> None:
        now = time.monotonic()
        due = list(self._known.values()) if now >= self._next_moment else ended
        if not due:
            return
        if now >= self._next_moment:
            self._next_moment = now + 0.9 * MOMENT_SECONDS  # turns come once a second too: none may be missed by a hair
        for run, moment in self._moments.take(due):
            self._report(run, self._engine.look(run, moment))

    def _judge_waiting(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    return
                run, step, size_bytes = self._waiting.popleft()
                self._waiting_bytes -= size_bytes
            self._known[run.directory] = run
            self._report(run, self._engine.observe(run, step))

    def _report(self, run: Run, findings: list[Finding]) -> None:
        for finding in findings:
            self._state.find(run, finding)


def _wanted(step: Step) -> tuple[HistogramRows, ...]:
    """The histograms that a rule looks at: of gradients, under float16. They are eight times as large as all the rest."""
    if "loss_scale" not in step.values and step.values.get("autocast_dtype") != _FLOAT16:
        return ()
    return tuple(rows for rows in step.histograms if rows.family == "gradient")
