"""Ask the daemon to pass a verb on to a job that it is connected to: no tracing, no stop, no rights but the job's user's."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

_REPLY_SECONDS = 5.0
_MAX_REPLY_BYTES = 4096
_LOOK_SECONDS = 0.02


def ask(daemon: Path, verb: str, pid: int, settings: dict[str, Any] | None = None) -> str:
    """'' when the daemon has told the job, else the reason why not. Raises OSError when no daemon answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(_REPLY_SECONDS)
        connection.connect(str(daemon))
        connection.send(json.dumps({"t": "command", "verb": verb, "pid": pid, "settings": settings or {}}).encode())
        reply = json.loads(connection.recv(_MAX_REPLY_BYTES) or b"{}")
    return "" if reply.get("t") == "done" else str(reply.get("reason", "the daemon did not understand"))


def detach(daemon: Path, pid: int, timeout_seconds: float) -> str:
    """Have the hooks leave `pid` and wait until they have said goodbye; '' or the reason why not. Raises OSError."""
    deadline = time.monotonic() + timeout_seconds
    reason = ask(daemon, "detach", pid)
    if reason:
        return reason
    while not ask(daemon, "detach", pid):
        if time.monotonic() > deadline:
            return f"the hooks have not left after {timeout_seconds:g} s"
        time.sleep(_LOOK_SECONDS)
    return ""
