"""The daemon: intake -> state (journal first) -> detectors -> exporters, with the samplers beside.

One thread does all that must not wait. What may wait for a disk (TensorBoard), for a peer (HTTP), for a rule (detectors) or
for a driver (NVML, in a process) does so elsewhere, so that nobody's trouble becomes anybody else's.
"""

from __future__ import annotations

import functools
import logging
import os
import selectors
import time
from collections.abc import Callable

from gpuwatch import announcement, paths, served
from gpuwatch.config import Config, ConfigError
from gpuwatch.detectors.engine import Engine
from gpuwatch.exporters.notifications import Notifications
from gpuwatch.exporters.tensorboard import TensorBoardExporter
from gpuwatch.intake import glances, listener
from gpuwatch.intake.intake import Intake
from gpuwatch.judging.judge import Judge
from gpuwatch.samplers.nvml_child import NvmlChild
from gpuwatch.samplers.supervisor import STARTING_SECONDS, Supervisor
from gpuwatch.selfstats import SelfStats
from gpuwatch.service.components import Guard, Worker
from gpuwatch.service.preconditions import StartError, allow_descriptors, prepare_logdir
from gpuwatch.service.signals import Signals
from gpuwatch.service.systemd import Notifier
from gpuwatch.state.journal_sync import JournalSync
from gpuwatch.state.store import State
from gpuwatch.upkeep import Upkeep

log = logging.getLogger(__name__)

#: How often the main thread wakes up without a ring to look at. All these periods are as long as their readers allow: a thread
#: that wakes up costs 0.15 ms, whatever it then finds, and the first step of a batch 0.25 ms of judging, the next ones 0.06.
IDLE_SECONDS = 0.5
TICK_SECONDS = 0.5
STATUS_SECONDS = 5.0
JUDGE_SECONDS = 1.0
SYNC_STALE_SECONDS = 90.0  # the longest period, and what a busy disk may take
DRAIN_SHARE = 0.3  # of the time that a shutdown may take: for reading the rings dry


class Daemon:
    """Everything wired together. `run` returns when a signal has asked for the end and all is flushed.

    `reload` reads the configuration anew at SIGHUP: it takes [hooks] over. `sampler`: a child started ahead. Raises StartError.
    """

    def __init__(self, config: Config, reload: Callable[[], Config] | None = None, sampler: NvmlChild | None = None) -> None:
        prepare_logdir(config.daemon.logdir)
        allow_descriptors()
        self.config = config
        self._reload = reload
        self.stats = SelfStats()
        self.notifier = Notifier()
        self.selector = selectors.DefaultSelector()
        limits = config.limits
        self.state = State(config.daemon.logdir, runs_per_uid=limits.runs_per_uid, journal_bytes=limits.journal_bytes)

        self.syncer = Worker(
            "journal_sync", JournalSync(self.state).turn, self.stats, config.daemon.sync_seconds, SYNC_STALE_SECONDS
        )
        self.judge = Judge(Engine(config.rules), self.state, self.stats)
        self.state.on_step.append(self.judge.hear)
        self.detectors = Worker("detectors", self.judge.turn, self.stats, JUDGE_SECONDS)
        self.judge.hurry = self.detectors.hurry

        self.notifications = Notifications(config.notify, self.state, self.stats)
        self.tensorboard = TensorBoardExporter(config, self.state, self.stats) if config.tensorboard.enabled else None
        self.http = served.listen(config, self.state, self.stats) if config.prometheus.enabled else None

        gpus = self.state.gpus
        self.supervisor = Supervisor(gpus, config.sampling, self.state.lock, sampler) if config.sampling.gpus else None
        if self.supervisor is None:
            gpus.state = "off"
        self.listener = self._listen()
        self.intake = Intake(self.state, self.listener, self.selector, self.stats, config.limits, config.hooks, self.supervisor)
        self._backlog = self._heard = False

        upkeep = Upkeep(self.state, self.intake, self.stats, self.notifier)
        self._turns = [
            Guard("intake", self._take_in, self.stats),
            Guard("state", upkeep.keep_state, self.stats, TICK_SECONDS),
        ]
        self._longest_seconds = STATUS_SECONDS  # the shortest period that somebody has asked for
        if self.notifier.heard:
            period_seconds = self.notifier.watchdog_seconds or STATUS_SECONDS
            self._turns.append(Guard("systemd", upkeep.tell_systemd, self.stats, period_seconds))
            self._longest_seconds = min(self._longest_seconds, period_seconds)
        if self.supervisor is not None:
            self._turns.append(Guard("nvml", self.supervisor.turn, self.stats))  # it knows when its turns are due
        if config.sampling.host:
            # A loop that turns as often as that may come a hair too early, and must not leave every other turn out.
            self._turns.append(Guard("host", upkeep.sample_host, self.stats, 0.9 * config.sampling.host_seconds))
            self._longest_seconds = min(self._longest_seconds, config.sampling.host_seconds)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT. 0: everything was drained and flushed in time; 1: it was not."""
        signals = Signals(self.selector)
        self.detectors.start()
        self.syncer.start()
        if self.tensorboard is not None:
            self.tensorboard.start()
        if self.http is not None:
            self.http.start()
        self._say_ready()
        while not signals.stop_asked:
            glances.wait(self._dispatch, self.intake.sessions.values(), self._patience_seconds())
            for component in self._turns:
                component.run()
            if signals.take_reload():
                self._read_config_again()
        return self._shut_down()

    def _dispatch(self, timeout_seconds: float) -> bool:
        """Let everything that is ready be handled. True when the components' turns are due because of it."""
        dues = [key.data(events) is not False for key, events in self.selector.select(timeout_seconds)]
        self._heard = bool(dues)
        return any(dues)

    def _take_in(self) -> None:
        self._backlog = self.intake.turn()

    def _patience_seconds(self) -> float:
        if self._backlog:
            return 0.0
        idle_seconds = STARTING_SECONDS if self.state.gpus.state == "starting" else IDLE_SECONDS
        usual_seconds = self.config.daemon.poll_seconds if self.intake.sessions else idle_seconds
        return min(self._longest_seconds, self.intake.patience_seconds(usual_seconds))

    def _shut_down(self) -> int:
        """Hear what is still said, read the rings dry, flush everything; all within daemon.shutdown_seconds."""
        self.notifier.send(STOPPING=1, STATUS="flushing")
        announcement.remove(self.listener.path)
        allowed_seconds = self.config.daemon.shutdown_seconds
        whole = self._drain(time.monotonic() + DRAIN_SHARE * allowed_seconds)
        whole &= self.detectors.stop(0.2 * allowed_seconds)
        ends: list[Callable[[], object]] = [self.intake.close, self.state.close, self.notifications.stop]
        if self.supervisor is not None:
            ends.append(functools.partial(self.supervisor.close, 0.1 * allowed_seconds))
        if self.tensorboard is not None:
            ends.append(functools.partial(self.tensorboard.stop, 0.3 * allowed_seconds))
        if self.http is not None:
            ends.append(functools.partial(self.http.stop, 0.2))
        for end in ends:
            try:
                end()
            except Exception:
                log.exception("a part did not end well")
                whole = False
        self.notifier.close()
        log.info("ended%s", "" if whole else " before everything was flushed: the next daemon goes on from here")
        return 0 if whole else 1

    def _drain(self, deadline: float) -> bool:
        quiet = 0
        while quiet < 2 and time.monotonic() < deadline:
            self._dispatch(0.0)
            self._turns[0].run()
            quiet = 0 if self._backlog or self._heard else quiet + 1
        return quiet >= 2

    def _read_config_again(self) -> None:
        try:
            config = self._reload() if self._reload is not None else self.config
        except ConfigError as error:
            log.error("the configuration was not taken over: %s", error)  # noqa: TRY400  # a sentence, not a traceback
            return
        self.intake.reconfigure(config.hooks)
        log.info("took over [hooks]; other sections need a restart")

    def _listen(self) -> listener.Listener:
        try:
            return listener.adopt(os.environ) or listener.bind(paths.socket_to_bind(self.config.daemon.socket))
        except listener.ListenError as error:
            if self.http is not None:
                self.http.stop()
            raise StartError(str(error)) from None

    def _say_ready(self) -> None:
        metrics = f"{self.http.url}/metrics" if self.http is not None else ""
        log.info("listening at %s, recording to %s, metrics at %s", self.listener.path, self.state.logdir, metrics or "none")
        announcement.write(self.listener.path, self.state.logdir, metrics)
        self.notifier.send(READY=1, STATUS="ready", X_GPUWATCH_SOCKET=str(self.listener.path), X_GPUWATCH_METRICS=metrics)
