"""What of a run is not on the disk, and why: the disk refuses, or somebody has deleted the folder under us."""

from __future__ import annotations

import errno
import os

from gpuwatch.state.runs import Run


def of(run: Run) -> str:
    """Why what comes now is not kept, as a clause for people; empty when it is."""
    if _is_gone(run):
        return f"{run.path} was deleted or moved"
    if run.journal is not None and run.journal.paused:
        return ", ".join(os.strerror(getattr(errno, name, 0)) for name in sorted(run.journal.errors))
    return ""


def incomplete(run: Run) -> bool:
    """Steps were seen that the journal does not hold."""
    return run.kept_step < run.last_step


def note_kept(run: Run) -> None:
    """Take down how far the journal goes, when nothing waits for the disk."""
    if run.journal is not None and not run.journal.has_pending:
        run.kept_step = run.last_step


def _is_gone(run: Run) -> bool:
    """A deleted folder takes writes to the files that are open in it, and keeps none of them."""
    if run.place.fd < 0:
        return False
    ours = os.fstat(run.place.fd)
    try:
        there = os.stat(run.path, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino)
