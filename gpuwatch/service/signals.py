"""Signals, turned into something that the loop can ask about: the end, and reading the configuration again."""

from __future__ import annotations

import os
import selectors
import signal
import socket
from types import FrameType


class Signals:
    """SIGTERM and SIGINT ask for the end, and end at once when they come again; SIGHUP asks for the configuration.

    A signal wakes `selector`. To be made on the main thread.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self.stop_asked = False
        self._reload_asked = False
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)
        selector.register(self._wake_read, selectors.EVENT_READ, self._woken)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._came)

    def take_reload(self) -> bool:
        """Whether SIGHUP came since the last call."""
        asked, self._reload_asked = self._reload_asked, False
        return asked

    def _woken(self, _events: int) -> None:
        self._wake_read.recv(64)

    def _came(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._reload_asked = True
        elif self.stop_asked:
            os._exit(1)  # who asks twice does not want to wait, and the journals are whole at any instant
        else:
            self.stop_asked = True
