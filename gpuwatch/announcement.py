"""Where a daemon records and serves, in a file beside its socket: for `gpuwatch run`, `runs` and `status` of the same user.

The socket's directory is writable by the daemon's user alone, so who may read the file may also believe it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec


class Announcement(msgspec.Struct, frozen=True):
    pid: int
    logdir: str  # absolute
    metrics_url: str  # empty when HTTP is off


def path_beside(socket_path: Path) -> Path:
    return socket_path.with_name(socket_path.name + ".json")


def write(socket_path: Path, logdir: str, metrics_url: str) -> None:
    """Say where we are. A directory that does not take the file only costs the commands a --logdir."""
    announcement = Announcement(os.getpid(), str(Path(logdir).absolute()), metrics_url)
    temporary = socket_path.with_name(f"{socket_path.name}.{os.getpid()}.json")
    with contextlib.suppress(OSError):
        temporary.write_bytes(msgspec.json.encode(announcement))
        temporary.replace(path_beside(socket_path))


def read(socket_path: Path) -> Announcement | None:
    """What the daemon at this socket said, or None."""
    try:
        return msgspec.json.decode(path_beside(socket_path).read_bytes(), type=Announcement)
    except (OSError, msgspec.MsgspecError):
        return None


def remove(socket_path: Path) -> None:
    """Take it back, unless another daemon has said something since."""
    announced = read(socket_path)
    if announced is not None and announced.pid == os.getpid():
        with contextlib.suppress(OSError):
            path_beside(socket_path).unlink()
