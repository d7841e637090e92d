"""What the daemon needs of the system before it can start."""

from __future__ import annotations

import os
import resource

WANTED_DESCRIPTORS = 65536


class StartError(Exception):
    """The daemon cannot start; one sentence says why and what to do."""


def prepare_logdir(logdir: str) -> None:
    """Make the log directory. Raises StartError when nothing can be recorded there."""
    try:
        os.makedirs(logdir, exist_ok=True)
    except OSError as error:
        raise StartError(f"cannot record to {logdir}: {error.strerror}; choose another place with --logdir") from None
    if not os.access(logdir, os.W_OK | os.X_OK):
        raise StartError(f"cannot record to {logdir}: no permission to write there; choose another place with --logdir")


def allow_descriptors() -> None:
    """Each rank takes about seven descriptors, and the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, WANTED_DESCRIPTORS)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
