"""Room that a run keeps on the disk for its last words: when the disk fills up, run.json still tells how the run stands.

A run.json begins with 2 KiB and grows to 10 to 40 KiB, for which a full disk has no room. The reserve is a file whose blocks
are there already: the new version is written into them, and it takes run.json's name. Nobody takes the room in between.
"""

from __future__ import annotations

import contextlib
import errno
import os

from gpuwatch.state import directories

NAME = ".reserve"
#: More than the largest run.json of the tests' and zoo's trainings, 40 KiB.
RESERVE_BYTES = 64 * 1024


def keep(directory: int) -> None:
    """Take the room, unless it is there; a disk without so much goes on without."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe in its place is no reason to wait
    try:
        fd = os.open(NAME, flags, 0o644, dir_fd=directory)
    except OSError:
        return
    try:
        os.posix_fallocate(fd, 0, RESERVE_BYTES)
    except OSError:
        give_back(directory)
    finally:
        os.close(fd)


def give_back(directory: int) -> None:
    """Free the room, if there is any."""
    with contextlib.suppress(OSError):
        os.unlink(NAME, dir_fd=directory)


def replace_file(directory: int, name: str, data: bytes) -> None:
    """directories.replace_file, which spends the reserve where the disk is full. Raises OSError.

    What it leaves has the reserve's size, so that later versions find room where it lies.
    """
    try:
        directories.replace_file(directory, name, data)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT} or not directories.overwrite(directory, NAME, data):
            raise
        os.rename(NAME, name, src_dir_fd=directory, dst_dir_fd=directory)
