"""The NVML child's clock: who is asked when, and one line a second to the parent. Knows nothing of NVML itself.

Devices take their turns one after another in one burst a second, then the line is written: code that runs again at once is ten
times as cheap as code that has gone cold. Between two turns a reading of memory that is due comes first, so that the dear calls
(2 to 4 ms each) of eight devices hide no spike. Commands from the parent come as JSON lines on standard input; its end is ours.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import time
from functools import partial

from gpuwatch.samplers import heartbeat as phase
from gpuwatch.samplers.heartbeat import NO_DEVICE, Heartbeat
from gpuwatch.samplers.line_writer import LineWriter
from gpuwatch.samplers.slot import Slot

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would cost this process a megabyte
    from collections.abc import Callable
    from typing import Any

_STDIN = 0
_PR_SET_PDEATHSIG = 1
_LONGEST_REINIT_SECONDS = 30.0
_LONGEST_RINGS_NS = 10_000_000_000  # the driver's rings of utilization hold 14 s


class DriverGoneError(Exception):
    """NVML as a whole does not answer: not there, unloaded, of another version. `code` is NVML's name for it."""

    def __init__(self, code: str, sentence: str, *, needs_new_process: bool) -> None:
        super().__init__(sentence)
        self.code = code
        self.needs_new_process = needs_new_process  # the mapped library will never fit again


class DeviceGoneError(Exception):
    """One device does not answer."""


class ParentGoneError(Exception):
    """Nobody reads our lines any more."""


def run(make_driver: Callable[..., Any], open_gpu: Callable[[Any, int], list[Any]], options: str) -> None:
    """Samples until the parent closes our standard input, or the driver can no longer be used by this process.

    The caller ends the process then, and with it what still hangs in the driver: nothing here waits for that.
    """
    settings = json.loads(options)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # also when a call hangs while the daemon dies
    if os.getppid() != settings["parent"]:
        return  # it died before that
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the daemon's to handle; it closes our input
    try:
        SamplingLoop(partial(make_driver, gpm=settings["gpm"]), open_gpu, settings).run()
    except (ParentGoneError, BrokenPipeError):
        return


class SamplingLoop:
    """`options`: memory_hz, fast_hz, dear_seconds, slow_seconds, gpm, skip (GPU indices), only (the same, or null), paused,
    heartbeat (its descriptor) and parent (its pid).
    """

    def __init__(
        self, make_driver: Callable[[], Any], open_gpu: Callable[[Any, int], list[Any]], options: dict[str, Any]
    ) -> None:
        self._make_driver = make_driver
        self._open_gpu = open_gpu
        self._memory_ns = int(1e9 / options["memory_hz"])
        self._fast_ns = int(1e9 / options["fast_hz"])
        self._dear_ns = int(1e9 * options["dear_seconds"])
        self._slow_ns = int(1e9 * options["slow_seconds"])
        self._rings_ns = min(self._slow_ns, _LONGEST_RINGS_NS)
        # What is due a little before or after a reading of memory is done with it: every wake-up costs 50 us.
        self._slack_ns = min(self._memory_ns // 2, 50_000_000)
        self._skip: set[int] = set(options["skip"])
        self._only: set[int] | None = None if options["only"] is None else set(options["only"])
        self._paused: bool = options["paused"]
        self._heartbeat = Heartbeat(options["heartbeat"])
        self._poll = select.poll()
        self._poll.register(_STDIN, select.POLLIN)
        self._input = b""
        self._slots: dict[int, Slot] = {}
        self._line = LineWriter()
        self._news = False  # a GPU went or came back: the next line is due at once
        self._last_memory_ns = 0  # 0: no reading to measure a gap from
        self._reinit_seconds = 1.0
        self._next_reinit_ns = 0
        self._reinit_wanted = False
        self._next_fast = self._last_fast = self._next_line = 0

    def run(self) -> None:
        worked = False
        while True:
            while self._paused:
                self._heartbeat.idle()
                self._commands(None)
            driver = None
            try:
                self._heartbeat.busy(time.monotonic_ns(), NO_DEVICE, phase.STARTING)
                driver = self._make_driver()
                self._line.reinits += worked
                worked = True
                self._sample(driver)
            except DriverGoneError as gone:
                errors = driver.errors if driver is not None else {f"nvmlInit|{gone.code}": 1}
                self._line.gone(gone.code, str(gone), worked=worked, errors=errors)
                if gone.needs_new_process or not worked:
                    return
                self._heartbeat.idle()
                self._commands(self._dear_ns / 1e6)
            if driver is not None:
                self._heartbeat.busy(time.monotonic_ns(), NO_DEVICE, phase.STARTING)
                self._line.hear_events(driver, self._slots)
                for slot in self._slots.values():
                    slot.let_go()
                if not driver.close():
                    return  # something of ours hangs in this session, and only with our end does it go

    def _sample(self, driver: Any) -> None:
        """Reads until the driver is gone, or is to be initialised anew because a GPU stays lost."""
        self._slots, self._reinit_wanted = {}, False
        count = driver.count()
        self._open_slots(driver, count)
        now = next_memory = next_other = self._next_fast = self._next_line = time.monotonic_ns()
        self._last_fast = now - self._fast_ns
        self._next_reinit_ns = now + int(self._reinit_seconds * 1e9)
        self._last_memory_ns = 0
        while not self._reinit_wanted:
            if self._paused:
                self._wait_paused()
                self._open_slots(driver, count)
                next_memory = next_other = self._next_fast = self._next_line = time.monotonic_ns()
                self._last_fast = next_memory - self._fast_ns
            now = time.monotonic_ns()
            if now >= next_memory:
                if self._last_memory_ns:
                    self._line.longest_gap_ns = max(self._line.longest_gap_ns, now - self._last_memory_ns)
                self._last_memory_ns = now
                self._round(phase.MEMORY, now, _read_memory)
                next_memory = _next(next_memory, self._memory_ns, now)
            if now + self._slack_ns >= next_other or self._news:
                next_other = self._other_readings(driver, now)
            end = time.monotonic_ns()
            self._line.busy_ns += end - now
            self._heartbeat.idle()
            wake = next_memory if next_other > next_memory - self._slack_ns else next_other
            if self._commands(max(0.0, (wake - end) / 1e6)):
                self._open_slots(driver, count)
                next_other = 0

    def _wait_paused(self) -> None:
        """Asks nothing until told to go on; what was open is opened anew then, so that no difference spans the pause."""
        for slot in self._slots.values():
            slot.let_go()
        self._slots = {}
        self._last_memory_ns = 0
        while self._paused:
            self._heartbeat.idle()
            self._commands(None)

    def _other_readings(self, driver: Any, now: int) -> int:
        """What is due besides memory: fast readings, one GPU's turn, a line. Returns when something is due again."""
        soon = now + self._slack_ns
        if soon >= self._next_fast:
            # Utilization is an average over the driver's last 1/6 to 1 s: it stands for no more than two of our periods.
            seconds = min(now - self._last_fast, 2 * self._fast_ns) / 1e9
            self._round(phase.FAST, now, partial(_read_fast, seconds=seconds, now_ns=now))
            self._last_fast, self._next_fast = now, _next(self._next_fast, self._fast_ns, now)
        due = min(self._slots.values(), key=lambda slot: slot.next_turn_ns, default=None)
        overdue = due if due is not None and soon >= due.next_turn_ns else None
        if overdue is not None:
            self._turn(driver, overdue, now)
        # A line waits for the turns that are due, but not for long: GPUs may take longer over theirs than a period has.
        is_due = soon >= self._next_line + (self._dear_ns if overdue is not None else 0)
        if is_due or self._news:
            self._line.sample(driver, self._slots)
            self._news = False
            self._next_line = _next(self._next_line, self._dear_ns, now) if is_due else now + self._dear_ns
            self._reinit_wanted = self._reinit_is_due(now)
        return min(self._next_fast, self._next_line, *(slot.next_turn_ns for slot in self._slots.values()))

    def _reinit_is_due(self, now: int) -> bool:
        """A GPU that was reset answers only to a new NVML session; ask for one while any is lost, less and less often."""
        if all(slot.devices for slot in self._slots.values()):
            self._reinit_seconds = 1.0
            self._next_reinit_ns = now + self._dear_ns
            return False
        if now < self._next_reinit_ns:
            return False
        self._reinit_seconds = min(2 * self._reinit_seconds, _LONGEST_REINIT_SECONDS)
        return True

    def _open_slots(self, driver: Any, count: int) -> None:
        """Brings the slots in line with what the parent wants of us."""
        for index in range(count):
            wanted = index in self._only if self._only is not None else index not in self._skip
            if wanted and index not in self._slots:
                slot = self._slots[index] = Slot(index)
                self._open(driver, slot)
            if wanted:
                self._slots[index].next_turn_ns = 0  # at once
            elif index in self._slots:
                self._slots.pop(index).let_go()

    def _open(self, driver: Any, slot: Slot) -> None:
        self._heartbeat.busy(time.monotonic_ns(), slot.index, phase.OPENING)
        slot.let_go()
        try:
            slot.devices = self._open_gpu(driver, slot.index)
        except DeviceGoneError as gone:
            slot.down = str(gone)
        else:
            self._news |= slot.down != ""
            slot.down, slot.turns, slot.next_slow_ns, slot.next_rings_ns = "", 0, 0, 0
            slot.known = [(device.label, device.uuid) for device in slot.devices]

    def _round(self, what: int, now: int, read: Callable[[Any], None]) -> None:
        for slot in self._slots.values():
            if slot.devices:
                self._ask(slot, what, now, read)

    def _ask(self, slot: Slot, what: int, now: int, read: Callable[[Any], None]) -> None:
        self._heartbeat.busy(now, slot.index, what)
        try:
            for device in slot.devices:
                read(device)
        except DeviceGoneError as gone:
            slot.let_go()
            slot.down = str(gone)
            self._news = True

    def _turn(self, driver: Any, slot: Slot, now: int) -> None:
        """A GPU's dear readings. Energy (2.7 ms) and process utilization (1.7 ms) alternate."""
        slot.next_turn_ns = (now + self._slack_ns) // self._dear_ns * self._dear_ns + self._dear_ns
        if not slot.devices:
            self._open(driver, slot)
        with_energy = slot.turns % 2 == 0
        steps: list[tuple[int, Callable[[Any], None]]] = [(phase.GAUGES, partial(_read_gauges, now_ns=now))]
        if slot.turns == 0:  # its first line comes right after this turn, and shall be whole
            steps[:0] = [(phase.MEMORY, _read_memory), (phase.FAST, partial(_read_fast, seconds=0.0, now_ns=now))]
        if with_energy:
            steps.append((phase.ENERGY, _read_energy))
        steps.append((phase.PROCESSES, partial(_read_processes, with_utilization=not with_energy)))
        if slot.devices and now >= slot.next_slow_ns:
            slot.next_slow_ns = now + self._slow_ns
            steps.append((phase.SLOW, partial(_read_slow, now_ns=now)))
            steps.append((phase.OPENING, partial(self._look_for_new_cut, driver, slot)))
        if slot.devices and now >= slot.next_rings_ns:
            slot.next_rings_ns = now + self._rings_ns
            steps.append((phase.RINGS, _read_rings))
        for what, read in steps:
            self._ask(slot, what, time.monotonic_ns(), read)
        slot.turns += 1

    def _look_for_new_cut(self, driver: Any, slot: Slot, device: Any) -> None:
        if device is slot.devices[0] and [uuid for *_, uuid in device.mig_handles()] != [mig.uuid for mig in slot.devices[1:]]:
            self._open(driver, slot)

    def _commands(self, timeout_ms: float | None) -> bool:
        """Sleeps for as long as no command comes (None: for ever); True when one did. Raises ParentGoneError."""
        if not self._poll.poll(timeout_ms):
            return False
        data = os.read(_STDIN, 65536)
        if not data:
            raise ParentGoneError
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            command = json.loads(line)
            self._skip = set(command["skip"])
            self._only = None if command["only"] is None else set(command["only"])
            self._paused = command["paused"]
        return bool(lines)


def _next(due_ns: int, period_ns: int, now_ns: int) -> int:
    """When something that was due is due again: at its own pace, or a period from now when it has fallen behind."""
    return due_ns + period_ns if due_ns + period_ns > now_ns else now_ns + period_ns


def _read_memory(device: Any) -> None:
    device.read_memory()


def _read_fast(device: Any, seconds: float, now_ns: int) -> None:
    device.read_fast(seconds, now_ns)


def _read_gauges(device: Any, now_ns: int) -> None:
    device.read_gauges(now_ns)


def _read_energy(device: Any) -> None:
    device.read_energy()


def _read_processes(device: Any, *, with_utilization: bool) -> None:
    device.read_processes(with_utilization=with_utilization)


def _read_slow(device: Any, now_ns: int) -> None:
    device.read_slow(now_ns)


def _read_rings(device: Any) -> None:
    device.read_rings()
