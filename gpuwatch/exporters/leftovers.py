"""Runs whose event files an earlier daemon left unfinished: it was killed, and the job ended before the next daemon came."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

from gpuwatch.exporters import run_export
from gpuwatch.state import directories, summary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpuwatch.state.identity import Identity

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Leftover(NamedTuple):
    """A run that has ended, but not in its event files."""

    directory: str  # below the log directory
    status: str
    end_reason: str


def open_run(logdir: str, directory: str) -> int:
    """A descriptor of a run's directory, reached without following a link below `logdir`. Raises OSError."""
    fd = os.open(logdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in directory.split("/"):
        parent = fd
        try:
            fd = os.open(part, _FOLDER, dir_fd=parent)
        finally:
            os.close(parent)
    return fd


def find(logdir: str) -> list[Leftover]:
    """The unfinished runs below `logdir` whose processes are gone. Raises OSError when it cannot be listed."""
    found = []
    for directory in _runs(logdir):
        with contextlib.suppress(OSError):
            fd = open_run(logdir, directory)
            try:
                leftover = _judge(fd, directory)
            finally:
                os.close(fd)
            if leftover is not None:
                found.append(leftover)
    return found


def _judge(fd: int, directory: str) -> Leftover | None:
    known = summary.decode(directories.read_file(fd, directories.SUMMARY_NAME, 16 << 20))
    if known is None or run_export.is_exported(fd):
        return None
    if known.status != "live":
        return Leftover(directory, known.status, known.end_reason)
    # A live process says hello to the new daemon and is exported as a run of the state.
    return None if _is_alive(known.identity) else Leftover(directory, "lost", "gone")


def _runs(logdir: str) -> Iterator[str]:
    """Folders with a run.json: LOGDIR/RUN and LOGDIR/RUN/rankN."""
    for name in sorted(os.listdir(logdir)):
        top = os.path.join(logdir, name)
        if not os.path.isdir(top):
            continue
        if os.path.exists(os.path.join(top, directories.SUMMARY_NAME)):
            yield name
            continue
        for rank in sorted(os.listdir(top)):
            if rank.startswith("rank") and os.path.exists(os.path.join(top, rank, directories.SUMMARY_NAME)):
                yield f"{name}/{rank}"


def _is_alive(identity: Identity) -> bool:
    """Whether the very process still lives: its pid, and the start time that tells it from a later one of that pid."""
    try:
        with open(f"/proc/{identity.pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return identity.start_ticks in (0, int(fields[19]))
    except (OSError, IndexError, ValueError):
        return False
