"""Who put hooks into what, and what it took: one JSON line an attach, in the caller's own state folder."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

from gpuwatch.attach.attacher import Outcome


def log_path() -> Path:
    """~/.local/state/gpuwatch/attach.log, or below $XDG_STATE_HOME. Raises OSError for a user without a home."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    if not os.path.isabs(base):
        raise FileNotFoundError(errno.ENOENT, "no home directory", base)  # a container's uid may have none
    return Path(base) / "gpuwatch" / "attach.log"


def write(verb: str, outcome: Outcome) -> None:
    """Append one line: time, verb, caller's uid and pid, target, method, answer, microseconds stopped. Raises OSError."""
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "verb": verb,
        "uid": os.getuid(),
        "sudo_user": os.environ.get("SUDO_USER", ""),
        "by_pid": os.getpid(),
        "pid": outcome.pid,
        "title": outcome.title,
        "method": outcome.method,
        "answer": outcome.answer,
        "stopped_microseconds": round(outcome.stopped_microseconds, 1),
    }
    path = log_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, json.dumps(line).encode() + b"\n")
    finally:
        os.close(fd)
