"""The TensorBoard exporter: one thread that keeps every run's event files up with its journal.

It reads journals, never the ring, so it may fall behind, pause on a full disk and resume without anybody waiting for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from gpuwatch.exporters import leftovers
from gpuwatch.exporters.gpu_history import GpuHistory
from gpuwatch.exporters.run_export import BusyError, RunExport

if TYPE_CHECKING:
    from gpuwatch.config import Config
    from gpuwatch.selfstats import SelfStats
    from gpuwatch.state.journal import JournalWriter
    from gpuwatch.state.store import State

_log = logging.getLogger(__name__)

COMPONENT = "tensorboard"
#: How long an ended run's files are kept open for what is still said about it (findings that close).
_LINGER_NS = 5_000_000_000
#: How long a run that could not be opened, or that another daemon exports, is left alone.
_REFUSED_NS = 5_000_000_000


class _Followed(msgspec.Struct):
    """A run that we export or would like to."""

    pid: int
    export: RunExport | None = None
    error: str = ""  # why there is no export
    retry_at_ns: int = 0
    ended_at_ns: int = 0
    done: bool = False  # exported to its end, and closed
    left_out: int = 0


class _Seen(msgspec.Struct):
    """A run as the state had it at the start of a turn."""

    directory: str
    pid: int
    status: str
    end_reason: str
    journal: JournalWriter | None
    settled: bool  # its journal holds all that it is going to hold


class TensorBoardExporter:
    """Follows the runs of `state`, and finishes those that an earlier daemon left unfinished."""

    def __init__(self, config: Config, state: State, stats: SelfStats) -> None:
        self._config = config
        self._state = state
        self._stats = stats
        self._gpus = GpuHistory()
        self._followed: dict[str, _Followed] = {}
        self._leftovers: list[_Seen] = []
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="gpuwatch-tensorboard", daemon=True)
        # A turn after a long pause may have a lot to read: it is down when it has not come back for half a minute.
        stats.expect(COMPONENT, stale_after_seconds=max(30.0, 3 * config.tensorboard.flush_seconds))

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """Exports what the journals hold by now, as far as the time goes, and ends the thread. What is left is resumed."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        self._leftovers = [
            _Seen(left.directory, 0, left.status, left.end_reason, None, True) for left in self._find_leftovers()
        ]
        while True:
            stopping = self._stopping  # read first: the turn behind it then sees everything that was there at the stop
            started = time.monotonic()
            try:
                self.turn(time.monotonic_ns())
            except Exception as error:  # noqa: BLE001  # the thread goes on, and the component shows as down
                _log.exception("TensorBoard: a turn failed")
                self._stats.fail(COMPONENT, f"{type(error).__name__}: {error}")
            else:
                self._report(time.monotonic() - started)
            if stopping:
                break
            self._wake.wait(self._config.tensorboard.flush_seconds)
        for followed in self._followed.values():
            self._close(followed)

    def turn(self, now_ns: int) -> None:
        """Bring every run up to date."""
        for seen in [*self._look(), *self._leftovers]:
            followed = self._followed.setdefault(seen.directory, _Followed(seen.pid))
            followed.done = followed.done and seen.status != "live"  # a run taken for a leftover may come back
            if followed.done or (followed.export is None and not self._open(seen, followed, now_ns)):
                continue
            try:
                self._follow(seen, followed, now_ns)
            except Exception as error:  # noqa: BLE001  # a bug that one run's data find must not stop the other runs
                _log.exception("TensorBoard: %s failed", seen.directory)
                followed.error, followed.retry_at_ns = f"{type(error).__name__}: {error}", now_ns + _REFUSED_NS
                self._close(followed)
        self._leftovers = [seen for seen in self._leftovers if not self._followed[seen.directory].done]

    def _look(self) -> list[_Seen]:
        with self._state.lock:
            self._gpus.sample(self._state.gpus)
            known = set(self._state.runs)
            seen = [
                _Seen(
                    run.directory,
                    run.identity.pid,
                    run.status,
                    run.end_reason,
                    run.journal,
                    run.journal is None or not run.journal.has_pending,
                )
                for run in self._state.runs.values()
            ]
        for directory in [name for name in self._followed if name not in known and self._followed[name].pid]:
            self._close(self._followed.pop(directory))
        return seen

    def _open(self, seen: _Seen, followed: _Followed, now_ns: int) -> bool:
        if now_ns < followed.retry_at_ns:
            return False
        followed.error, followed.left_out = "", 0
        try:
            directory_fd = leftovers.open_run(self._state.logdir, seen.directory)
        except OSError as error:
            followed.error, followed.retry_at_ns = error.strerror or str(error), now_ns + _REFUSED_NS
            return False
        try:
            pid = seen.pid
            followed.export = RunExport(self._config, directory_fd, lambda at_ns: self._gpus.readings(pid, at_ns))
        except BusyError:
            followed.retry_at_ns = now_ns + _REFUSED_NS
            os.close(directory_fd)
        except OSError as error:
            followed.error, followed.retry_at_ns = error.strerror or str(error), now_ns + _REFUSED_NS
            os.close(directory_fd)
        return followed.export is not None

    def _follow(self, seen: _Seen, followed: _Followed, now_ns: int) -> None:
        export = followed.export
        if export is None:
            return
        while export.turn(now_ns):
            pass
        if seen.status != "live" and seen.settled and not export.error:
            export.finish(seen.end_reason, now_ns)
            followed.ended_at_ns = followed.ended_at_ns or now_ns
        if seen.journal is not None:
            seen.journal.passed[COMPONENT] = export.needed_segment
        newly_left_out = export.left_out - followed.left_out
        if newly_left_out:
            followed.left_out = export.left_out
            self._stats.count("tensorboard_points_left_out", amount=newly_left_out)
        if export.ended and now_ns - followed.ended_at_ns >= _LINGER_NS:
            self._close(followed)
            followed.done = True

    def _report(self, duration_seconds: float) -> None:
        errors = {
            followed.export.error if followed.export is not None else followed.error for followed in self._followed.values()
        } - {""}
        if errors:
            self._stats.fail(COMPONENT, "paused: " + "; ".join(sorted(errors)))
        else:
            self._stats.beat(COMPONENT, duration_seconds)

    def _find_leftovers(self) -> list[leftovers.Leftover]:
        try:
            return leftovers.find(self._state.logdir)
        except OSError as error:
            _log.debug("TensorBoard: %s: %s", self._state.logdir, error.strerror)
            return []

    @staticmethod
    def _close(followed: _Followed) -> None:
        if followed.export is not None:
            with contextlib.suppress(OSError):
                followed.export.close()
        followed.export = None
