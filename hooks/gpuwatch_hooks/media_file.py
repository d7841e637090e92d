"""Bytes for the daemon in a sealed memfd: it can map them without trusting us not to shrink or change the file."""

import contextlib
import fcntl
import os

_F_ADD_SEALS = 1033
_SEALS = 0x0001 | 0x0002 | 0x0004 | 0x0008  # F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE


@contextlib.contextmanager
def sealed(data):
    """A descriptor of a sealed memfd that holds `data` (bytes), closed at the end of the block. Raises OSError."""
    fd = os.memfd_create("gpuwatch-media", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
        yield fd
    finally:
        os.close(fd)
