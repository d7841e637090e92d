"""Compiled kernels on disk, so that a machine compiles them once: ~/.cache/gpuwatch/kernels, private to its user.

Somebody else's file there would be run on the device with the job's rights, so a folder or file that another user may write
to is not used, and a file is written whole and then renamed. What was cut short or has rotted fails its checksum.
"""

import contextlib
import hashlib
import os
import tempfile

_OTHERS_MAY_WRITE = 0o022


def folder():
    """Where compiled kernels are kept; None where the user has no home."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "gpuwatch", "kernels") if os.path.isabs(base) else None


def key(*parts):
    """A file name for everything that the result depends on: source, options, architecture, compiler, driver."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:40] + ".cubin"


def read(name):
    """The bytes kept under `name`, or None when there are none that can be trusted."""
    where = folder()
    if where is None:
        return None
    try:
        if not _is_private(os.stat(where)):
            return None
        with open(os.path.join(where, name), "rb") as file:
            if not _is_private(os.fstat(file.fileno())):
                return None
            raw = file.read()
    except OSError:
        return None
    digest, code = raw[:32], raw[32:]
    return code if code and hashlib.sha256(code).digest() == digest else None


def write(name, code):
    """Keep `code` under `name`; whether that worked. A full disk or a read-only home only means compiling again."""
    where = folder()
    if where is None:
        return False
    partial = None
    try:
        os.makedirs(where, mode=0o700, exist_ok=True)
        if not _is_private(os.stat(where)):
            return False
        handle, partial = tempfile.mkstemp(dir=where, prefix=".partial-")  # rights 0600
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(partial, os.path.join(where, name))
    except OSError:
        if partial is not None:
            with contextlib.suppress(OSError):
                os.unlink(partial)
        return False
    return True


def _is_private(status):
    return status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_MAY_WRITE
