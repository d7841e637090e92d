"""Findings to a command or a webhook of the user's, from threads of their own: nothing here ever waits for anybody's answer.

Each target has a bounded queue. When it is full, what comes next is dropped and counted; what fails is tried again with
back-off and given up in the end, counted too. A target's address may hold a secret, so only its kind is ever logged.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from collections.abc import Callable

import msgspec

from gpuwatch.config import Notify
from gpuwatch.exporters import delivery
from gpuwatch.selfstats import SelfStats
from gpuwatch.state.findings import SEVERITIES, Finding
from gpuwatch.state.runs import Run
from gpuwatch.state.store import State
from gpuwatch.state.summary import jsonable

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 60.0
COMPONENT = "notify"
#: In the daemon's own counters, with the label TARGET/RESULT.
COUNTER = "notifications"
RESULTS = ("sent", "failed", "dropped")


class Notifications:
    """Registers itself with the state; inactive when nothing is configured."""

    def __init__(self, config: Notify, state: State, stats: SelfStats) -> None:
        self._least = SEVERITIES.index(config.severity)
        self._told: set[tuple[str, str, str, int]] = set()  # findings whose beginning was told: their end is told too
        self._host = socket.gethostname()
        senders: list[tuple[str, Callable[[bytes], None]]] = []
        if config.command:
            senders.append(("command", delivery.Command(config.command, config.timeout_seconds).send))
        if config.webhook:
            senders.append(("webhook", delivery.Webhook(config.webhook, config.token_file, config.timeout_seconds).send))
        self._targets = [Target(name, send, config, stats) for name, send in senders]
        if self._targets:
            stats.expect(COMPONENT)
            stats.beat(COMPONENT)
            state.on_finding.append(self.hear)
            state.on_worse.append(self.hear)

    def hear(self, run: Run, finding: Finding) -> None:
        """A finding has opened, grown more severe or closed. Called under the state's lock: it only queues."""
        key = (finding.directory, finding.rule, finding.layer, finding.first_step)
        if finding.state == "closed":
            if key not in self._told:
                return
            self._told.discard(key)
        elif SEVERITIES.index(finding.severity) < self._least:
            return
        else:
            self._told.add(key)
        body = msgspec.json.encode(message(finding, run, self._host))
        for target in self._targets:
            target.put(body)

    def stop(self, patience_seconds: float = 0.5) -> None:
        """Deliver what waits, for no longer than this; the rest is counted as dropped."""
        for target in self._targets:
            target.stop(patience_seconds / len(self._targets))


class Target:
    """One address, its queue and its thread. `send` raises DeliveryError, or anything."""

    def __init__(self, name: str, send: Callable[[bytes], None], config: Notify, stats: SelfStats) -> None:
        self.name = name
        self._send = send
        self._attempts = config.attempts
        self._queue_length = config.queue
        self._stats = stats
        self._waiting: deque[bytes] = deque()
        self._lock = threading.Lock()
        self._begun = False  # most daemons never have anything to tell: the thread begins with the first finding
        self._news = threading.Event()
        self._stop = threading.Event()
        for result in RESULTS:
            self._count(result, 0)
        self._thread = threading.Thread(target=self._run, name=f"gpuwatch-notify-{name}", daemon=True)

    def put(self, body: bytes) -> None:
        """Queue it, or count it as dropped. Never waits."""
        with self._lock:
            if len(self._waiting) >= self._queue_length:
                self._count("dropped")
                return
            self._waiting.append(body)
            if not self._begun:
                self._begun = True
                self._thread.start()
        self._news.set()

    def stop(self, patience_seconds: float) -> None:
        self._stop.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(patience_seconds)
        with self._lock:
            self._count("dropped", len(self._waiting))
            self._waiting.clear()

    def _count(self, result: str, amount: int = 1) -> None:
        self._stats.count(COUNTER, f"{self.name}/{result}", amount)

    def _run(self) -> None:
        while True:
            self._news.wait()
            self._news.clear()
            while True:
                with self._lock:
                    if not self._waiting:
                        break
                    body = self._waiting.popleft()
                self._deliver(body)
            if self._stop.is_set():
                return

    def _deliver(self, body: bytes) -> None:
        patience_seconds = FIRST_RETRY_SECONDS
        for attempt in range(1, self._attempts + 1):
            try:
                self._send(body)
            except Exception as error:  # noqa: BLE001  # whatever a command or a server does, the daemon goes on
                # DeliveryError says what went wrong without the address; of others only the kind is safe to tell
                reason = str(error) if isinstance(error, delivery.DeliveryError) else type(error).__name__
                self._stats.fail(COMPONENT, f"{self.name}: {reason}")
                final = isinstance(error, delivery.DeliveryError) and error.final
                if final or attempt == self._attempts or self._stop.wait(patience_seconds):
                    self._count("failed")
                    log.warning("a notification could not be delivered (%s: %s)", self.name, reason)
                    return
                patience_seconds = min(2 * patience_seconds, LAST_RETRY_SECONDS)
            else:
                self._count("sent")
                self._stats.beat(COMPONENT)
                return


def message(finding: Finding, run: Run, host: str) -> dict[str, object]:
    """What a target receives: the finding as `gpuwatch alerts --json` shows it, and where it comes from."""
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "state": finding.state,
        "summary": finding.summary,
        "action": finding.action,
        "run": finding.run,
        "rank": finding.rank,
        "directory": finding.directory,
        "host": host,
        "step": finding.step,
        "first_step": finding.first_step,
        "last_step": finding.last_step,
        "time": finding.time or run.started_wall_seconds,
        "layer": finding.layer,
        "statistic": finding.statistic,
        "value": jsonable(finding.value),
        "threshold": jsonable(finding.threshold),
    }
