"""One reading after the other: from the daemon while it answers, else from what we sample ourselves.

A daemon that is restarted is away for a second or two: for that long its last words stand, marked as such. After that we
sample by ourselves, and go back to the daemon as soon as there is one.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from gpuwatch.top import daemons
from gpuwatch.top.own_sampler import OwnSampler
from gpuwatch.top.reading import Job, Reading

if TYPE_CHECKING:
    from collections.abc import Callable

PERIOD_SECONDS = 1.0  # samples come once a second
TURN_SECONDS = 0.1
#: How long a daemon that does not answer is waited for before we start an NVML child of our own.
PATIENCE_SECONDS = 4.0
#: Reading the runs of a large log directory may take at most this share of our time.
_SCAN_SHARE = 0.05


class Feed:
    """`reading` is the latest one. `recorded` reads the run.json files below `logdir`, None for wherever the daemon records."""

    def __init__(self, recorded: Callable[[], list[Job]], logdir: Path | None = None) -> None:
        self.reading: Reading | None = None
        self._recorded = recorded
        self._logdir = None if logdir is None else logdir.absolute()
        self._own: OwnSampler | None = None
        self._heard_at = -PATIENCE_SECONDS
        self._next_at = 0.0
        self._jobs: list[Job] = []
        self._next_scan_at = 0.0

    def turn(self, period_seconds: float = PERIOD_SECONDS) -> None:
        """Takes a reading when one is due. May wait for a daemon that hangs: daemons.TIMEOUT_SECONDS for each question."""
        if self._own is not None:
            self._own.turn()
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + period_seconds
        self.reading = self._from_daemons(now) or self._last_words(now) or self._by_ourselves(now)

    def first(self, patience_seconds: float) -> Reading:
        """The first whole reading: GPUs answered, or it is known why not; what there is after `patience_seconds`."""
        deadline = time.monotonic() + patience_seconds
        while True:
            self.turn(period_seconds=0.2)
            reading = self.reading
            if reading is not None and (_is_whole(reading) or time.monotonic() > deadline):
                return reading
            time.sleep(0.02)

    def close(self) -> None:
        if self._own is not None:
            self._own.close()
            self._own = None

    def _from_daemons(self, now: float) -> Reading | None:
        answers = {daemon: daemons.ask(daemon.metrics_url) for daemon in daemons.announced()}
        answered = {daemon: answer for daemon, answer in answers.items() if answer is not None}
        if not answered:
            return None
        self._heard_at = time.monotonic()
        self.close()
        first = next(iter(answered))
        jobs = [job for daemon, answer in answered.items() if self._asked_for(daemon.logdir) for job in answer.jobs]
        if not any(self._asked_for(daemon.logdir) for daemon in answered):
            jobs = self._scan(now)
        return Reading(now, answered[first].node, jobs, "daemon", f"daemon {first.pid}")

    def _asked_for(self, logdir: str) -> bool:
        return self._logdir is None or Path(logdir) == self._logdir

    def _last_words(self, now: float) -> Reading | None:
        last = self.reading
        silent_seconds = now - self._heard_at
        if last is None or last.source != "daemon" or silent_seconds >= PATIENCE_SECONDS:
            return None
        note = "the daemon does not answer: this is the last that it said"
        return Reading(last.monotonic_seconds, last.node, last.jobs, "daemon", note, stale=True)

    def _by_ourselves(self, now: float) -> Reading:
        if self._own is None:
            self._own = OwnSampler()
            self._own.turn()
        jobs = self._scan(now)
        live = {job.summary.identity.pid: job for job in jobs if job.status == "live"}
        note = "no daemon answers: top samples by itself"
        return Reading(now, self._own.report(live), jobs, "top", note)

    def _scan(self, now: float) -> list[Job]:
        if now >= self._next_scan_at:
            began = time.monotonic()
            self._jobs = self._recorded()
            self._next_scan_at = now + (time.monotonic() - began) / _SCAN_SHARE
        return self._jobs


def _is_whole(reading: Reading) -> bool:
    host = reading.node.host
    known = reading.node.state != "starting" or reading.source == "daemon"
    return known and (host is None or host.cpu_utilization_ratio is not None)
