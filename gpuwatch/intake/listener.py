"""The control socket: bound where only the right people may put a socket, or taken over from systemd.

A daemon for the whole node lives in /run/gpuwatch: the directory is writable by its owner alone (0755), so nobody can squat
on the name, and the socket itself is open to all (0666), because the kernel tells us who calls and every quota is kept for
each user. Anywhere else the daemon is somebody's own: directory 0700, socket 0600.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import MutableMapping
from pathlib import Path

from gpuwatch.paths import SYSTEM_DIRECTORY, answers

BACKLOG = 128
_FIRST_PASSED_FD = 3
_MAX_PATH_BYTES = 107  # sockaddr_un


class ListenError(Exception):
    """The control socket cannot be had; one sentence says why and what to do."""


class Listener:
    """A listening SOCK_SEQPACKET socket, non-blocking. `close` removes its path, if it is still the one that we made."""

    def __init__(self, listening: socket.socket, path: Path, lock_fd: int = -1) -> None:
        self.socket = listening
        self.path = path
        self._lock_fd = lock_fd  # held for life, so that two daemons which start together do not both find the path free
        self._inode = _inode(path) if lock_fd >= 0 else None
        listening.setblocking(False)

    def accept(self) -> socket.socket | None:
        """The next caller, non-blocking, or None. Raises OSError when we are out of descriptors or memory."""
        try:
            caller, _ = self.socket.accept()
        except (BlockingIOError, ConnectionError, InterruptedError):
            return None
        caller.setblocking(False)
        return caller

    def close(self) -> None:
        self.socket.close()
        if self._lock_fd >= 0:
            if _inode(self.path) == self._inode:
                with contextlib.suppress(OSError):
                    self.path.unlink()
            os.close(self._lock_fd)
            self._lock_fd = -1


def adopt(environ: MutableMapping[str, str]) -> Listener | None:
    """The socket that systemd passed ($LISTEN_FDS), or None. Takes the variables out, so that no child takes it again."""
    count, owner = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    environ.pop("LISTEN_FDNAMES", None)
    if owner != str(os.getpid()) or count in {"", "0"}:
        return None
    if count != "1":
        raise ListenError(
            f"{count} sockets were passed where one is expected: check ListenSequentialPacket= of gpuwatch.socket"
        )
    passed = socket.socket(fileno=_FIRST_PASSED_FD)
    os.set_inheritable(_FIRST_PASSED_FD, False)
    if passed.family != socket.AF_UNIX or passed.type != socket.SOCK_SEQPACKET:
        raise ListenError("the passed socket is not AF_UNIX SOCK_SEQPACKET: use ListenSequentialPacket= in gpuwatch.socket")
    return Listener(passed, Path(passed.getsockname()))


def bind(path: Path) -> Listener:
    """Listen at `path`, whose directory is made when it is missing. Raises ListenError."""
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise ListenError(f"{path}: a socket's path may have {_MAX_PATH_BYTES} bytes; choose a shorter one with --socket")
    system = path.parent == SYSTEM_DIRECTORY
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755 if system else 0o700)
        _check_directory(path.parent)
        lock_fd = _lock(path)
        try:
            _remove_stale(path)
            return Listener(_listen(path, 0o666 if system else 0o600), path, lock_fd)
        except BaseException:
            os.close(lock_fd)
            raise
    except OSError as error:
        raise ListenError(f"{path}: cannot listen here: {error.strerror}") from None


def _check_directory(directory: Path) -> None:
    status = directory.stat()
    if status.st_uid not in {0, os.geteuid()}:
        raise ListenError(f"{directory} belongs to another user (uid {status.st_uid}), who could replace the socket")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ListenError(f"{directory} is writable by others, who could replace the socket: use a directory of mode 0700")


def _lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock_fd = os.open(f"{path}.lock", flags, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock_fd)
        raise ListenError(f"another gpuwatch daemon already listens at {path}") from None
    return lock_fd


def _remove_stale(path: Path) -> None:
    """Remove a dead daemon's socket; refuse when it is alive, or when what lies there is not a socket."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise ListenError(f"{path} exists and is not a socket")
    if answers(path):
        raise ListenError(f"another gpuwatch daemon already listens at {path}")
    path.unlink()


def _listen(path: Path, mode: int) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    # Narrow first, then as wide as wanted: between bind and chmod the path must not be open to more than it will be.
    umask = os.umask(0o177)
    try:
        listening.bind(str(path))
        os.chmod(path, mode)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    finally:
        os.umask(umask)
    return listening


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
