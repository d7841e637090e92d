"""Keeps NVML children at work and the GPUs' state true, whatever the driver does. Never waits.

As a rule one child samples all GPUs. A call on one of them that does not return within SIDE_SECONDS puts that child *aside*:
it is left alone with its GPU, and a new child goes on with the others. A GPU without a sample for sampling.deadline_seconds is
down, with the reason. A child aside that stays stuck is killed and its GPU tried again with back-off; one that cannot be killed
(it sleeps in the kernel) is left, and no second one is sent after it. A child aside that has worked for CALM_SECONDS ends, and
its GPU goes back to the others.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING

from gpuwatch.samplers.heartbeat import NO_DEVICE, OPENING, PHASES
from gpuwatch.samplers.lines import GoneLine, apply, count_errors, unknown_uuid
from gpuwatch.samplers.nvml_child import NvmlChild

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from gpuwatch.config import Sampling
    from gpuwatch.state.gpus import Gpu, Gpus

log = logging.getLogger(__name__)

TURN_SECONDS = 0.4  # lines come once a second, and a turn of the daemon twice
STARTING_SECONDS = 0.02  # the same while the first line is awaited: a tenth of what the child takes to start
SIDE_SECONDS = 2.0  # the longest call seen on a healthy H100 took 16 ms
FIRST_SIDE_SECONDS = 10.0  # to open a GPU the first time: without persistence mode that initialises it
CALM_SECONDS = 10.0
START_SECONDS = 60.0  # nvmlInit of eight GPUs without persistence mode takes tens of seconds
END_SECONDS = 2.0  # for a child to end by itself
ABSENT_RETRY_SECONDS = 60.0
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 60.0

_NO_DRIVER = {"library_not_found", "driver_not_loaded"}


class Aside:
    """A GPU that is not sampled with the others: by a child of its own, or by nobody until `retry_at_ns`."""

    def __init__(self, child: NvmlChild) -> None:
        self.child: NvmlChild | None = child
        self.retry_at_ns = 0
        self.retry_seconds = FIRST_RETRY_SECONDS


class Supervisor:
    """Samples into `gpus`, under `lock`, by child processes; `first` is one that was started ahead of us."""

    def __init__(
        self,
        gpus: Gpus,
        sampling: Sampling,
        lock: AbstractContextManager[object] | None = None,
        first: NvmlChild | None = None,
    ) -> None:
        self._gpus = gpus
        self._sampling = sampling
        self._lock = lock if lock is not None else contextlib.nullcontext()
        self._main = first
        self._aside: dict[int, Aside] = {}
        self._known: dict[str, int] = {}  # every device ever told of: UUID -> GPU index
        self._ended: list[NvmlChild] = []  # told or forced to end, not yet gone
        self._next_turn_ns = 0
        self._start_at_ns = 0
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._gone: GoneLine | None = None  # the main child's last word
        self._paused = False
        self._released = False  # paused, and no child may have the driver open

    def turn(self) -> None:
        """Reads what the children wrote, and does what is due; costs next to nothing when it comes more often than needed."""
        now_ns = time.monotonic_ns()
        if now_ns < self._next_turn_ns:
            return
        turn_seconds = STARTING_SECONDS if self._gpus.state == "starting" else TURN_SECONDS
        self._next_turn_ns = now_ns + int(turn_seconds * 1e9)
        if self._paused:
            self._turn_paused(now_ns)
            return
        if self._main is None and now_ns >= self._start_at_ns:
            self._gone = None
            self._main = self._start(now_ns)
        for child in self._children():
            self._hear(child, now_ns)
        self._reap(now_ns)
        self._watch_main(now_ns)
        for index, aside in list(self._aside.items()):
            self._watch_aside(index, aside, now_ns)
        with self._lock:
            self._gpus.samplers = len(self.child_pids())
            self._mark_silent(now_ns)

    def pause(self, *, release: bool = False) -> None:
        """Stops sampling; with `release` lets go of the driver, too, so that a GPU can be reset or cut up anew.

        Returns at once: `child_pids` is empty when the driver has been let go of.
        """
        self._paused = True
        self._released |= release
        if self._released:
            for child in self._children():
                self._end(child)
            self._main = None
            self._aside.clear()
        for child in self._children():
            child.pause(paused=True)
        with self._lock:
            self._tell_paused()
            for gpu in self._gpus:
                gpu.mark_down("sampling is paused")

    def resume(self) -> None:
        """Goes on, with the children that there are or with a new one."""
        now_ns = time.monotonic_ns()
        self._paused = self._released = False
        self._start_at_ns = 0
        for child in self._children():
            child.last_line_ns = child.calm_since_ns = now_ns
            child.pause(paused=False)
        with self._lock:
            self._gpus.state, self._gpus.message = "starting", ""

    def _turn_paused(self, now_ns: int) -> None:
        """What children still say is of before the pause: it is read, so that nobody waits, and dropped."""
        for child in self._children():
            child.lines(now_ns)
        self._reap(now_ns)
        with self._lock:
            self._tell_paused()

    def _tell_paused(self) -> None:
        pids = self.child_pids()
        holding = f"held by process {', '.join(map(str, pids))}" if pids else "released"
        if pids and self._released:
            holding = f"not released yet: {holding}"
        self._gpus.samplers = len(pids)
        self._gpus.memory_gap_seconds = None
        self._gpus.state, self._gpus.message = "paused", f"sampling is paused, the driver is {holding}"

    def close(self, timeout_seconds: float = 1.0) -> None:
        """Ends every child: by its input's end, then by force. One that the driver holds is left to the kernel."""
        for child in self._children():
            self._end(child)
        self._main, self._paused = None, True
        self._aside.clear()
        for until_seconds, force in ((timeout_seconds, False), (0.2, True)):
            deadline = time.monotonic() + until_seconds
            for child in self._ended if force else ():
                child.kill()
            while self._ended and time.monotonic() < deadline:
                time.sleep(0.01)
                self._reap(time.monotonic_ns())
        for child in self._ended:
            child.release()

    def child_pids(self) -> list[int]:
        """The living children, for accounting what sampling costs."""
        return [child.pid for child in [*self._children(), *self._ended]]

    def _start(self, now_ns: int, only: set[int] | None = None) -> NvmlChild:
        return NvmlChild(self._sampling, now_ns, self._known, skip=set() if only else set(self._aside), only=only)

    def _children(self) -> list[NvmlChild]:
        asides = [aside.child for aside in self._aside.values() if aside.child is not None]
        return asides if self._main is None else [self._main, *asides]

    def _hear(self, child: NvmlChild, now_ns: int) -> None:
        for line in child.lines(now_ns):
            with self._lock:
                if not isinstance(line, GoneLine):
                    apply(line, self._gpus, child.heard)
                    self._known.update(child.heard.devices)
                    if child is self._main:
                        self._gpus.sample_duration_seconds = line.seconds
                        self._retry_seconds = FIRST_RETRY_SECONDS
                    continue
                count_errors(line.errors, self._gpus)
                if child is self._main:
                    self._gone = line
                    self._gpus.state = "absent" if line.code in _NO_DRIVER and not line.worked else "failing"
                    self._gpus.message = (
                        f"no NVIDIA driver here: {line.reason}" if self._gpus.state == "absent" else line.reason
                    )
                for uuid in child.heard.devices:
                    if uuid in self._gpus.by_uuid:
                        self._gpus.by_uuid[uuid].mark_down(f"the driver is gone: {line.reason}")

    def _reap(self, now_ns: int) -> None:
        """Buries the children that have ended, and has those die that were told to end and do not."""
        for child in list(self._ended):
            if child.exit_status() is not None:
                child.release()
                self._ended.remove(child)
            elif not child.killed and now_ns - child.ended_ns > END_SECONDS * 1e9:
                child.kill()
        if self._main is not None and self._main.exit_status() is not None:
            if not self._paused:
                self._hear(self._main, now_ns)  # its last words
            status = self._main.exit_status()
            self._main.release()
            self._main = None
            if self._gpus.state == "absent":
                self._start_at_ns = now_ns + int(ABSENT_RETRY_SECONDS * 1e9)
                return
            if self._gone is None:
                log.warning("the NVML child ended with status %s; next one in %.0f s", status, self._retry_seconds)
            self._start_at_ns = now_ns + int(self._retry_seconds * 1e9)
            self._retry_seconds = min(2 * self._retry_seconds, LAST_RETRY_SECONDS)

    def _watch_main(self, now_ns: int) -> None:
        child = self._main
        if child is None:
            return
        seconds, index, phase = child.stuck(now_ns)
        what = PHASES[phase]
        patience = FIRST_SIDE_SECONDS if phase == OPENING and not child.last_line_ns else SIDE_SECONDS
        if index >= 0 and seconds > patience and index not in self._aside:
            log.warning("GPU %d has not answered for %.1f s (%s): another child goes on with the others", index, seconds, what)
            self._aside[index] = Aside(child)
            child.assign(skip=set(), only={index})
            self._main = self._start(now_ns)
        elif max(seconds, self._silence_seconds(child, now_ns) - self._sampling.dear_seconds) > START_SECONDS:
            log.warning("the NVML child has not answered for %.0f s (%s): killing it", START_SECONDS, what)
            child.kill()
            self._end(child)
            self._main = None
            self._start_at_ns = now_ns + int(self._retry_seconds * 1e9)
            self._retry_seconds = min(2 * self._retry_seconds, LAST_RETRY_SECONDS)

    def _watch_aside(self, index: int, aside: Aside, now_ns: int) -> None:
        child = aside.child
        if child is None:
            if now_ns >= aside.retry_at_ns:
                aside.child = self._start(now_ns, only={index})
            return
        if child.exit_status() is not None:
            child.release()
            aside.child = None
            aside.retry_at_ns = now_ns + int(aside.retry_seconds * 1e9)
            aside.retry_seconds = min(2 * aside.retry_seconds, LAST_RETRY_SECONDS)
            return
        seconds, _, phase = child.stuck(now_ns)
        if seconds > SIDE_SECONDS or self._silence_seconds(child, now_ns) > SIDE_SECONDS + self._sampling.dear_seconds:
            child.calm_since_ns = now_ns
            if seconds > 2 * self._sampling.deadline_seconds and not child.killed:
                log.warning("GPU %d still does not answer (%s): killing its child", index, PHASES[phase])
                child.kill()
        elif now_ns - child.calm_since_ns > CALM_SECONDS * 1e9:
            del self._aside[index]
            self._end(child)
            if self._main is not None:
                self._main.assign(skip=set(self._aside), only=None)

    def _silence_seconds(self, child: NvmlChild, now_ns: int) -> float:
        return (now_ns - max(child.last_line_ns, child.started_ns)) / 1e9

    def _mark_silent(self, now_ns: int) -> None:
        """A device without a sample for too long is down, with the reason that its child's heartbeat gives."""
        deadline_ns = int(max(self._sampling.deadline_seconds, 2.5 * self._sampling.dear_seconds) * 1e9)
        for gpu in self._gpus.by_uuid.values():
            if gpu.up and now_ns - gpu.last_sample_monotonic_ns > deadline_ns:
                gpu.mark_down(self._reason(gpu, now_ns))
        for index, aside in self._aside.items():
            if aside.child is not None and index not in self._known.values():
                self._gpus.find(unknown_uuid(index), str(index)).mark_down("it has not answered since the daemon started")
        if self._main is not None:
            seconds, index, phase = self._main.stuck(now_ns)
            if index == NO_DEVICE and seconds > self._sampling.deadline_seconds:
                self._gpus.state = "failing"
                self._gpus.message = f"the driver has not answered for {seconds:.0f} s ({PHASES[phase]})"

    def _reason(self, gpu: Gpu, now_ns: int) -> str:
        for child in self._children():
            seconds, index, phase = child.stuck(now_ns)
            if seconds > SIDE_SECONDS and index in (self._known.get(gpu.uuid), NO_DEVICE):
                return f"the driver has not answered for {seconds:.0f} s ({PHASES[phase]})"
        return f"no sample for {self._sampling.deadline_seconds:.0f} s"

    def _end(self, child: NvmlChild) -> None:
        child.close()
        child.ended_ns = time.monotonic_ns()
        self._ended.append(child)
