"""A file of ours in the target's own root, for ways in that can only name one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable

from gpuwatch.attach.entry import InjectError
from gpuwatch.attach.process import Process


def place(process: Process, content: Callable[[str], bytes]) -> str:
    """A file of `content(path)` that the target alone can read and write; its path as the target names it.

    Exclusive and with an unguessable name, through the target's root: nobody can have put something else there.
    """
    for folder in (f"/run/user/{process.uid}", "/dev/shm", "/var/tmp"):  # noqa: S108  # in the target's root, exclusive, unguessable
        path = f"{folder}/gpuwatch-{secrets.token_hex(16)}.py"
        try:
            directory = os.open(f"/proc/{process.pid}/root{folder}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            fd = os.open(os.path.basename(path), flags, 0o600, dir_fd=directory)
        except OSError:
            continue
        finally:
            os.close(directory)
        with os.fdopen(fd, "wb") as file:
            file.write(content(path))
            if os.geteuid() != process.uid:
                os.fchown(fd, process.uid, -1)
        return path
    raise InjectError("there is no folder in which the target could read a file of ours")


def outside(process: Process, path: str) -> str:
    """The same file as we name it."""
    return f"/proc/{process.pid}/root{path}"
