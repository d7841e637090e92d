"""A signal to a process of the table, and to no other that has got its pid since."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuwatch.top.process_rows import ProcessRow

#: What a user may send, the mildest first.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


def send(row: ProcessRow, number: signal.Signals) -> str:
    """Send it; "" when it was sent, else one sentence that says why not."""
    who = f"{row.pid} ({row.command or 'unknown'})"
    if not row.start_ticks:
        return f"not sent: it is not known when {who} started, so the pid may be another process's by now"
    try:
        descriptor = os.pidfd_open(row.pid)
        try:
            # The descriptor is of whoever has the pid now, and stays so: who that is, is asked after it was opened.
            if _start_ticks(row.pid) != row.start_ticks:
                return f"not sent: {row.pid} is not {row.command or 'that process'} any more, or a pid of another namespace"
            signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)
    except ProcessLookupError:
        return f"{who} has ended"
    except PermissionError:
        return f"not sent: {who} belongs to {row.user or 'another user'}"
    except OSError as error:
        return f"not sent to {who}: {error.strerror}"
    return ""


def _start_ticks(pid: int) -> int:
    """Field 22 of /proc/PID/stat; -1 when the process has gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return -1
