"""systemd's notification protocol: readiness, a line of status, and the watchdog's pulse.

`gpuwatch run` listens on $NOTIFY_SOCKET too, for its private daemon: the X_GPUWATCH_ variables tell it where the metrics are.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class Notifier:
    """Sends to $NOTIFY_SOCKET; without one every call does nothing. Never raises: readiness is news, not work."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        try:
            pid, limit = int(environ.get("WATCHDOG_PID", os.getpid())), int(environ.get("WATCHDOG_USEC", "0"))
        except ValueError:
            pid, limit = 0, 0
        #: Pulse at least this often (half of what systemd allows); 0 when nobody watches.
        self.watchdog_seconds = limit / 2e6 if pid == os.getpid() else 0.0

    @property
    def heard(self) -> bool:
        """Somebody asked to be told."""
        return self._socket is not None

    def send(self, **variables: str | int) -> bool:
        """NAME=value lines, for example send(READY=1, STATUS="2 runs"). False when nobody took it."""
        if self._socket is None:
            return False
        text = "\n".join(f"{name}={str(value).replace(chr(10), ' ')}" for name, value in variables.items())
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError:
            return False
        return True

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
