"""What the driver reports by itself: Xid errors, and news of a memory's wear. A thread waits for them in the driver.

The wait ends each WAIT_MS by itself (0.05 ms of processor time), so that the thread registers GPUs between two waits, never
during one, and is gone before NVML is shut down. It is a daemon thread and the process leaves without asking it: a wait that
hangs in the kernel keeps nobody. Of what happened before a GPU was registered the driver tells nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from ctypes import addressof, byref, c_uint

import pynvml

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would cost this process a megabyte
    from typing import Any

WAIT_MS = 500
CLOSE_SECONDS = 2.0  # four times a wait: what takes longer hangs
_MAX_WAITING = 1024  # in a storm of Xids, what comes beyond that within a second is only counted as lost

_XID = pynvml.nvmlEventTypeXidCriticalError
# News of wear: the counters that are otherwise read every ten seconds are read at once.
_WEAR = (
    pynvml.nvmlEventTypeSingleBitEccError
    | pynvml.nvmlEventTypeDoubleBitEccError
    | pynvml.nvmlEventTypeSingleBitEccErrorStorm
    | pynvml.nvmlEventTypeDramRetirementEvent
    | pynvml.nvmlEventTypeDramRetirementFailure
    | pynvml.nvmlEventTypeNonFatalPoisonError
    | pynvml.nvmlEventTypeFatalPoisonError
)


class Events:
    """The events of one NVML session; the thread begins with the first GPU. All but the thread's own part is for one caller."""

    def __init__(self) -> None:
        self._wanted: deque[tuple[int, Any]] = deque()  # (GPU index, handle) that the thread has yet to register
        self._indices: dict[int, int] = {}  # handle's address -> GPU index
        self._came: deque[tuple[int, int, int]] = deque()
        self._failures: deque[tuple[str, int]] = deque(maxlen=_MAX_WAITING)
        self._lost = 0
        self._wake = threading.Event()  # somebody to register, or the end
        self._stopped = False
        self._thread: threading.Thread | None = None

    def watch(self, index: int, handle: Any) -> None:
        """Hear of this GPU from now on (within WAIT_MS); once for each handle."""
        address = addressof(handle.contents)
        if address in self._indices:
            return
        self._indices[address] = index
        self._wanted.append((index, handle))
        self._wake.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="nvml-events", daemon=True)
            self._thread.start()

    def take(self) -> list[tuple[int, int, int]]:
        """What has come: (GPU index, Xid or 0 for news of wear, wall time in ns), oldest first."""
        return [self._came.popleft() for _ in range(len(self._came))]

    def take_failures(self) -> list[tuple[str, int]]:
        """(call, NVML's code) of the thread's calls that failed since the last time."""
        return [self._failures.popleft() for _ in range(len(self._failures))]

    def take_lost(self) -> int:
        """How many events were dropped because nobody took them."""
        lost, self._lost = self._lost, 0
        return lost

    def close(self) -> bool:
        """Ends the thread, which frees the set. False: it hangs in the driver."""
        self._stopped = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
        return self._thread is None or not self._thread.is_alive()

    def _run(self) -> None:
        try:
            events = pynvml.nvmlEventSetCreate()
        except pynvml.NVMLError as error:
            self._failures.append(("nvmlEventSetCreate", error.value))
            return
        try:
            while not self._stopped and not self._register(events):
                self._wake.wait()  # a wait for nobody's events costs a wake-up twice a second
            self._wait(events)
        finally:
            try:
                pynvml.nvmlEventSetFree(events)
            except pynvml.NVMLError as error:
                if error.value != pynvml.NVML_ERROR_UNINITIALIZED:  # the driver went, and the set with it
                    self._failures.append(("nvmlEventSetFree", error.value))

    def _register(self, events: Any) -> bool:
        """Adds the GPUs that wait for it. True when there is one to wait for."""
        self._wake.clear()
        any_registered = False
        while self._wanted:
            _, handle = self._wanted.popleft()
            try:
                kinds = pynvml.nvmlDeviceGetSupportedEventTypes(handle) & (_XID | _WEAR)
                if kinds:
                    pynvml.nvmlDeviceRegisterEvents(handle, kinds, events)
                    any_registered = True
            except pynvml.NVMLError as error:
                self._failures.append(("nvmlDeviceRegisterEvents", error.value))
        return any_registered

    def _wait(self, events: Any) -> None:
        wait = pynvml.nvmlLib.nvmlEventSetWait_v2
        data = pynvml.c_nvmlEventData_t()
        arguments = (events, byref(data), c_uint(WAIT_MS))
        told = 0
        while not self._stopped:
            code = wait(*arguments)
            if code == 0:
                self._hear(data)
            elif code == pynvml.NVML_ERROR_UNINITIALIZED:
                return  # the driver was reloaded: the main thread finds out, and begins a new session with a new set
            elif code != pynvml.NVML_ERROR_TIMEOUT:
                if code != told:  # with a lost GPU every wait fails at once until the next session: that is one failure
                    self._failures.append(("nvmlEventSetWait_v2", code))
                    told = code
                time.sleep(WAIT_MS / 1e3)
            if self._wanted:
                self._register(events)

    def _hear(self, data: Any) -> None:
        index = self._indices.get(addressof(data.device.contents)) if data.device else None
        is_xid = data.eventType & _XID
        if index is None or not (is_xid or data.eventType & _WEAR):
            return
        if len(self._came) >= _MAX_WAITING:
            self._lost += 1
            return
        self._came.append((index, data.eventData if is_xid else 0, time.time_ns()))
