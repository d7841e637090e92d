"""How a process of a run stands, in words: what became of it, and what of it is not on the disk."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from gpuwatch.cli.terminal import quantity_of_seconds

if TYPE_CHECKING:
    from gpuwatch.cli.recorded import Recorded

#: How a signal is said; the others are "killed by SIGNAME".
_SIGNALS = {
    signal.SIGINT: "interrupted by SIGINT",
    signal.SIGTERM: "ended by SIGTERM",
    signal.SIGHUP: "ended by SIGHUP",
    signal.SIGKILL: "killed by SIGKILL",
    signal.SIGSEGV: "crashed by SIGSEGV",
    signal.SIGABRT: "crashed by SIGABRT",
    signal.SIGBUS: "crashed by SIGBUS",
    signal.SIGFPE: "crashed by SIGFPE",
}
_HINTS: dict[int, str] = {signal.SIGKILL: " (out of memory?)"}
#: A live run's file is replaced every two seconds while it steps; one that is older than this says how old it is.
_FRESH_SECONDS = 10.0


def ending(status: str, end_reason: str) -> str:
    """A few words for a list, from `status` and `end_reason` of run.json: "failed, exit 3", "killed by SIGKILL", "died"."""
    what, _, number = end_reason.partition(" ")
    if what == "command":
        return f"command {ending(status, number)}"
    if what == "signal" and number.isdigit():
        return _by_signal(int(number))
    if what == "exit" and number:
        return f"failed, exit {number}"
    if end_reason == "exception":
        return "failed, exception"
    if end_reason == "detached":
        return "detached"
    return "died" if status == "lost" else status


def short(process: Recorded) -> str:
    """How it stands, for a table."""
    if since(process):
        return "not followed"
    told = ending(process.status, process.summary.end_reason) if process.status != "live" else "live"
    return f"{told}, incomplete" if process.summary.kept_step is not None else told


def whole(process: Recorded) -> str:
    """How it stands, for a page of its own: with the time, and with what is behind it where that can be guessed."""
    known = process.summary
    if since(process):
        return f"not followed since {since(process)}"
    if process.status == "live":
        return "live"
    number = known.end_reason.removeprefix("signal ")
    hint = _HINTS.get(int(number), "") if number.isdigit() else ""
    return ending(process.status, known.end_reason) + hint


def since(process: Recorded) -> str:
    """Since when nobody follows a process whose daemon is gone; '' for all others."""
    if process.status != "lost" or process.summary.status != "live":
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(process.summary.updated_wall_seconds))


def age(process: Recorded) -> str:
    """How old the file of a live run is, when it is not fresh; else ''."""
    old = time.time() - process.summary.updated_wall_seconds
    return f"as of {quantity_of_seconds(old)} ago" if process.status == "live" and old > _FRESH_SECONDS else ""


def shortfall(step: int, kept_step: int | None, trouble: str, lost_records: int = 0) -> str:
    """What of the steps is not on the disk and why, as a clause; '' when all of it is."""
    if trouble.endswith("deleted or moved"):
        return f"{trouble}, and what was recorded with it"
    because = f": {trouble}" if trouble else ""
    if kept_step is not None and kept_step < step:
        if not kept_step:
            return f"none of its steps is on the disk{because}"
        steps = f"step {step:,} is" if kept_step + 1 == step else f"steps {kept_step + 1:,} to {step:,} are"
        return f"{steps} not on the disk{because}"
    if lost_records:
        return f"{lost_records:,} records were lost while the disk took none{because}"
    return ""


def _by_signal(number: int) -> str:
    try:
        name = signal.Signals(number)
    except ValueError:
        return f"killed by signal {number}"
    return _SIGNALS.get(name, f"killed by {name.name}")
