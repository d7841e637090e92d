"""What the main thread does by the clock: keep the state, look at the host, tell systemd."""

from __future__ import annotations

import logging

from gpuwatch.intake.intake import Intake
from gpuwatch.samplers.host import HostSampler
from gpuwatch.selfstats import SelfStats
from gpuwatch.service.systemd import Notifier
from gpuwatch.state import trouble
from gpuwatch.state.store import State

log = logging.getLogger(__name__)


class Upkeep:
    """Each method is one component's turn."""

    def __init__(self, state: State, intake: Intake, stats: SelfStats, notifier: Notifier) -> None:
        self._state = state
        self._intake = intake
        self._stats = stats
        self._notifier = notifier
        self._host = HostSampler()
        self._paused: set[str] = set()  # runs whose journal the disk refuses
        stats.expect("journal")

    def keep_state(self) -> None:
        """Close silent steps, write what waits; say when the disk refuses, and when it takes again."""
        try:
            self._state.tick()
        finally:
            self._judge_journals()

    def _judge_journals(self) -> None:
        with self._state.lock:
            troubled = {
                run.directory: trouble.of(run)
                for run in self._state.runs.values()
                if run.status == "live" or (run.journal is not None and run.journal.paused)
            }
        paused = {directory: why for directory, why in troubled.items() if why}
        for directory in sorted(paused.keys() - self._paused):
            log.warning("%s: the journal is paused (%s); metrics go on", directory, paused[directory])
        for directory in sorted(self._paused - paused.keys()):
            log.info("%s: the journal goes on", directory)
        self._paused = set(paused)
        if paused:
            self._stats.fail("journal", f"paused for {len(paused)} runs: {', '.join(sorted(set(paused.values())))}")
        else:
            self._stats.beat("journal")

    def sample_host(self) -> None:
        with self._state.lock:
            pids = [run.identity.pid for run in self._state.runs.values() if run.status == "live" and run.identity.pid]
        sample = self._host.sample(pids)
        with self._state.lock:
            self._state.host = sample

    def tell_systemd(self) -> None:
        """That we are alive, and how we are."""
        down = sorted(name for name, state in self._stats.components().items() if not state.up)
        status = f"{len(self._intake.sessions)} training processes" + (f"; down: {', '.join(down)}" if down else "")
        self._notifier.send(WATCHDOG=1, STATUS=status)
