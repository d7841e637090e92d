"""Descriptors that a stranger hands over: what may be read without letting the stranger stop, kill or fill this daemon.

Only a sealed, fully allocated memory file passes. A pipe or a FUSE file can block a read for ever, a file that its owner may
truncate kills a reader of its mapping with SIGBUS, huge pages do the same when the pool is dry, and a hole that we read
would be allocated on our own account.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat

_F_GET_SEALS = 1034
SEAL_SEAL, SEAL_SHRINK, SEAL_GROW, SEAL_WRITE = 1, 2, 4, 8
SEALED_SIZE = SEAL_SEAL | SEAL_SHRINK | SEAL_GROW


class DescriptorError(ValueError):
    """A descriptor that is not what its sender owes us; the text says what is wrong with it."""


def check_memfd(fd: int, max_bytes: int, seals: int = SEALED_SIZE) -> int:
    """The size in bytes of the memfd `fd`, which carries all `seals` and at most `max_bytes`. Raises DescriptorError."""
    try:
        # First of all, because it is answered by the kernel alone: fstat would ask the server of a FUSE file.
        held = fcntl.fcntl(fd, _F_GET_SEALS)
        status = os.fstat(fd)
        page_bytes = os.fstatvfs(fd).f_bsize
    except OSError as error:
        raise DescriptorError(f"not a memfd ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):
        raise DescriptorError("not a regular file")
    if held & seals != seals:
        raise DescriptorError(f"seals {held:#x} where {seals:#x} are needed")
    if page_bytes != mmap.PAGESIZE:
        raise DescriptorError(f"memory in pages of {page_bytes} bytes")
    if status.st_size > max_bytes:
        raise DescriptorError(f"{status.st_size} bytes where at most {max_bytes} are taken")
    if status.st_blocks * 512 < status.st_size:
        raise DescriptorError("a file with holes: its memory would be ours")
    return status.st_size


def close_all(fds: list[int]) -> None:
    """Close every descriptor of the list and empty it; what is closed already stays closed."""
    while fds:
        try:
            os.close(fds.pop())
        except OSError:
            continue
