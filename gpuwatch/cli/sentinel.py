"""Whether a signal that came to us was sent to our whole process group, and so has reached the command already.

What the kernel tells of a signal (siginfo) is the same for `kill PID` and for `kill -- -GROUP`. So a second process of ours
sits in the group with every signal blocked: what is sent to the group stays pending there, and /proc shows it; what
is sent to us alone does not.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable

_PR_SET_NAME = 15
_PR_SET_PDEATHSIG = 1
#: `timeout` signals its child and then the group, a few system calls apart; a busy machine may take its processor away between.
_PATIENCE_SECONDS = 0.1
_LOOK_SECONDS = 0.005


class Sentinel:
    """A child in our group that does nothing. To be made where no other thread runs; `close` ends it."""

    def __init__(self, watched: Iterable[signal.Signals]) -> None:
        self._watched = frozenset(watched)
        self._known: set[signal.Signals] = set()  # sent to the group, seen there, and not yet taken by us
        self._pid = _start()

    def has_seen(self, number: signal.Signals) -> bool:
        """Whether the signal that we have just taken went to the whole group. Waits a moment for one that is on its way."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while number not in self._known:
            pending = self._pending()
            if pending:
                # Pending signals are flags: to see the next one of the same kind takes a new process.
                self._known |= pending
                self.close()
                self._pid = _start()
            elif time.monotonic() >= deadline:
                return False
            else:
                time.sleep(_LOOK_SECONDS)
        self._known.discard(number)
        return True

    def close(self) -> None:
        """End it."""
        pid, self._pid = self._pid, 0
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def _pending(self) -> set[signal.Signals]:
        try:
            with open(f"/proc/{self._pid}/status", encoding="utf-8", errors="replace") as status:
                bits = next(int(line.split()[1], 16) for line in status if line.startswith("ShdPnd:"))
        except (OSError, StopIteration):
            return set()
        return {number for number in self._watched if bits >> (number - 1) & 1}


def _start() -> int:
    """Its pid; 0 where no process can be had: every signal then counts as sent to us alone."""
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl
    try:
        pid = os.fork()
    except OSError:
        return 0
    if pid:
        return pid
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        prctl(_PR_SET_NAME, b"gpuwatch-signal", 0, 0, 0)
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.closerange(0, os.sysconf("SC_OPEN_MAX"))  # whoever reads what the command writes waits for its end, not for ours
        while os.getppid() == parent:
            time.sleep(3600)
    finally:
        os._exit(0)
