"""The daemon: intake -> state (journal first) -> detectors -> exporters, with the samplers beside.

One thread does all that must not wait. What may wait for a disk (TensorBoard), for a peer (HTTP), for a rule (detectors) or
for a driver (NVML, in a process) does so elsewhere, so that nobody's trouble becomes anybody else's.
"""

from __future__ import annotations

import logging
import os
import resource
import selectors
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

from gpuwatch import paths
from gpuwatch.components import Guard, Worker
from gpuwatch.config import Config, ConfigError
from gpuwatch.detectors.engine import Engine
from gpuwatch.exporters.tensorboard import TensorBoardExporter
from gpuwatch.intake import listener
from gpuwatch.intake.intake import Intake
from gpuwatch.judge import Judge
from gpuwatch.notify import Notifier
from gpuwatch.selfstats import SelfStats
from gpuwatch.state.store import State

log = logging.getLogger(__name__)

#: Without news from any ring for IDLE_AFTER_SECONDS the rings are looked at this often.
IDLE_POLL_SECONDS = 0.1
IDLE_AFTER_SECONDS = 2.0
TICK_SECONDS = 0.25
STATUS_SECONDS = 5.0
JUDGE_SECONDS = 0.1


class StartError(Exception):
    """The daemon cannot start; one sentence says why and what to do."""


class Daemon:
    """Everything wired together. `run` returns when a signal has asked for the end and all is flushed.

    `reload` reads the configuration again at SIGHUP; only [hooks] is taken over, for all the rest asks for a restart.
    """

    def __init__(self, config: Config, reload: Callable[[], Config] | None = None) -> None:
        self.config = config
        self.stats = SelfStats()
        self.state = State(config.daemon.logdir, runs_per_uid=config.limits.runs_per_uid)
        self.notifier = Notifier()
        self.selector = selectors.DefaultSelector()
        self._reload = reload
        self._signals: list[int] = []
        self._wake_read, self._wake_write = socket.socketpair()
        self._next = {"tick": 0.0, "status": 0.0, "watchdog": 0.0}

        _check_logdir(config.daemon.logdir)
        _allow_descriptors()
        try:
            door = listener.adopt(os.environ) or listener.bind(paths.socket_to_bind(config.daemon.socket))
        except listener.ListenError as error:
            raise StartError(str(error)) from None
        self.intake = Intake(self.state, door, self.selector, self.stats, config.limits, config.hooks)
        self.socket_path = door.path
        self.judge = Judge(Engine(config.rules), self.state, self.stats)
        self.state.on_step.append(self.judge.hear)
        self.detectors = Worker("detectors", self.judge.turn, self.stats, JUDGE_SECONDS)
        self.tensorboard = TensorBoardExporter(config, self.state, self.stats) if config.tensorboard.enabled else None

        self._backlog = False
        self._intake = Guard("intake", self._take_in, self.stats)
        self._state = Guard("state", self.state.tick, self.stats)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT. 0: everything was drained and flushed in time; 1: it was not."""
        self._catch_signals()
        self.detectors.start()
        if self.tensorboard is not None:
            self.tensorboard.start()
        log.info("listening at %s, recording to %s", self.socket_path, self.config.daemon.logdir)
        self.notifier.send(READY=1, STATUS="ready", X_GPUWATCH_SOCKET=str(self.socket_path))
        while not self._stop_asked():
            self._dispatch(self._patience_seconds())
            self._intake.run()
            self._keep_up()
        return self._shut_down()

    def _dispatch(self, timeout_seconds: float) -> bool:
        """Let everything that is ready have its turn; False when nothing was."""
        ready = self.selector.select(timeout_seconds)
        for key, events in ready:
            key.data(events)
        return bool(ready)

    def _take_in(self) -> None:
        self._backlog = self.intake.turn()

    def _patience_seconds(self) -> float:
        if self._backlog:
            return 0.0
        poll_seconds = self.config.daemon.poll_seconds
        if self.intake.idle_seconds(time.monotonic_ns()) > IDLE_AFTER_SECONDS:
            return max(poll_seconds, IDLE_POLL_SECONDS)
        return poll_seconds

    def _keep_up(self) -> None:
        """What is due by the clock rather than by an event."""
        now = time.monotonic()
        if self._due("tick", TICK_SECONDS, now):
            self._state.run()
        if self.notifier.watchdog_seconds and self._due("watchdog", self.notifier.watchdog_seconds, now):
            self.notifier.send(WATCHDOG=1)
        if self._due("status", STATUS_SECONDS, now):
            down = sorted(name for name, state in self.stats.components().items() if not state.up)
            self.notifier.send(STATUS=f"{len(self.intake.sessions)} processes" + (f"; down: {', '.join(down)}" if down else ""))

    def _due(self, what: str, period_seconds: float, now: float) -> bool:
        if now < self._next[what]:
            return False
        self._next[what] = now + period_seconds
        return True

    def _shut_down(self) -> int:
        """Hear what is still said, read the rings dry, flush everything; all within daemon.shutdown_seconds."""
        self.notifier.send(STOPPING=1, STATUS="flushing")
        deadline = time.monotonic() + self.config.daemon.shutdown_seconds
        drained = self._drain(deadline - 0.6 * self.config.daemon.shutdown_seconds)
        self.detectors.stop()
        judged = self.detectors.join(max(0.1, 0.2 * (deadline - time.monotonic())))
        self.intake.close()
        self.state.close()
        if self.tensorboard is not None:
            self.tensorboard.stop(max(0.1, deadline - time.monotonic()))
        self.notifier.close()
        log.info("ended%s", "" if drained and judged else " before everything was flushed: the next daemon goes on from here")
        return 0 if drained and judged else 1

    def _drain(self, deadline: float) -> bool:
        quiet = 0
        while quiet < 2 and time.monotonic() < deadline:
            heard = self._dispatch(0.0)
            quiet = 0 if self.intake.turn() or heard else quiet + 1
        return quiet >= 2

    # ---------------------------------------------------------------------------------------------------------- signals

    def _catch_signals(self) -> None:
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        self.selector.register(self._wake_read, selectors.EVENT_READ, lambda _events: self._wake_read.recv(64))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGHUP and any(earlier != signal.SIGHUP for earlier in self._signals):
            os._exit(1)  # somebody who asks twice does not want to wait; the journals are whole at any instant
        self._signals.append(number)

    def _stop_asked(self) -> bool:
        while signal.SIGHUP in self._signals:
            self._signals.remove(signal.SIGHUP)
            self._read_config_again()
        return bool(self._signals)

    def _read_config_again(self) -> None:
        try:
            config = self._reload() if self._reload is not None else self.config
        except ConfigError as error:
            log.error("the configuration was not taken over: %s", error)  # noqa: TRY400  # a sentence, not a traceback
            return
        self.intake.reconfigure(config.hooks)
        log.info("took over [hooks]; other sections need a restart")


def _check_logdir(logdir: str) -> None:
    try:
        os.makedirs(logdir, exist_ok=True)
    except OSError as error:
        raise StartError(f"cannot record to {logdir}: {error.strerror}; choose another place with --logdir") from None
    if not os.access(logdir, os.W_OK | os.X_OK):
        raise StartError(f"cannot record to {logdir}: no permission to write there; choose another place with --logdir")


def _allow_descriptors() -> None:
    """Each rank takes about seven descriptors, and the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
