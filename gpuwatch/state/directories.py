"""Where runs are recorded: LOGDIR/RUN/ or LOGDIR/RUN/rankN/, `-2`, `-3` behind the last name for later attempts.

Names come from training processes and are hostile until reduced. Every step down is taken with a directory descriptor and
O_NOFOLLOW, so that no planted link and no `..` leads out of the log directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator

import msgspec

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_NAME_CHARS = 80
MAX_ATTEMPTS = 9999
#: What makes a folder a run's own.
SUMMARY_NAME = "run.json"


class NoRoomError(Exception):
    """No directory could be made for a run; the text says why."""


class RunDirectory(msgspec.Struct):
    """A directory that belongs to one run. `fd` is open on it, for the run's life."""

    relative: str  # "digits", "digits/rank0-2": below the log directory
    path: str
    fd: int
    attempt: int  # 1, 2, ...
    resumed: bool  # it was this very process's before the daemon restarted

    @property
    def name(self) -> str:
        """The run's name: its folder directly below the log directory."""
        return self.relative.split("/", 1)[0]

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def reduce_name(text: str, fallback: str = "run") -> str:
    """`text` as a file name of [A-Za-z0-9._-]{1,80} that is neither hidden, nor an option, nor a way up."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", text[: 4 * MAX_NAME_CHARS]).strip("-").lstrip(".-")[:MAX_NAME_CHARS]
    return kept or fallback


def claim(
    logdir: str,
    run: str,
    rank: int,
    world_size: int,
    is_ours: Callable[[bytes], bool],
    is_our_users: Callable[[bytes], bool],
) -> RunDirectory:
    """The directory for a process that says it is `rank` of `run`: its own from before, else a new one.

    `is_ours` and `is_our_users` judge the bytes of a run.json: written for this very process; written for its user. A folder
    of ranks belongs to one user: another's job of the same name gets a folder of its own. Raises NoRoomError.
    """
    base = reduce_name(run)
    try:
        os.makedirs(logdir, exist_ok=True)
        root = os.open(logdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NoRoomError(f"{logdir}: {error.strerror}") from None
    try:
        if world_size <= 1:
            name, fd, attempt, resumed = _claim_leaf(root, base, is_ours)
            return RunDirectory(name, os.path.join(logdir, name), fd, attempt, resumed)
        top, top_fd = _claim_top(root, base, is_our_users)
        try:
            name, fd, attempt, resumed = _claim_leaf(top_fd, f"rank{max(0, rank)}", is_ours)
        finally:
            os.close(top_fd)
        relative = f"{top}/{name}"
        return RunDirectory(relative, os.path.join(logdir, relative), fd, attempt, resumed)
    except OSError as error:
        raise NoRoomError(f"{logdir}: {error.strerror}") from None
    finally:
        os.close(root)


def _candidates(base: str) -> Iterator[tuple[int, str]]:
    for attempt in range(1, MAX_ATTEMPTS + 1):
        suffix = f"-{attempt}" if attempt > 1 else ""
        yield attempt, base[: MAX_NAME_CHARS - len(suffix)] + suffix


def _claim_leaf(parent: int, base: str, is_ours: Callable[[bytes], bool]) -> tuple[str, int, int, bool]:
    """The first attempt's folder below `parent` that is free or already ours: (name, descriptor, attempt, resumed)."""
    taken = set(os.listdir(parent))
    for attempt, name in _candidates(base):
        if name in taken:
            fd = _open_folder(parent, name)
            if fd >= 0 and is_ours(read_file(fd, SUMMARY_NAME)):
                return name, fd, attempt, True
            if fd >= 0:
                os.close(fd)
            continue
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
        except FileExistsError:
            continue
        return name, os.open(name, _DIRECTORY, dir_fd=parent), attempt, False
    raise NoRoomError(f"{base}: {MAX_ATTEMPTS} attempts already")


def _claim_top(root: int, base: str, is_our_users: Callable[[bytes], bool]) -> tuple[str, int]:
    """The folder for all ranks of a run, made when it is new: never a single process's own, nor another user's."""
    for _, name in _candidates(base):
        try:
            os.mkdir(name, 0o755, dir_fd=root)
        except FileExistsError:
            fd = _open_folder(root, name)
            if fd >= 0 and _holds_ranks_of(fd, is_our_users):
                return name, fd
            if fd >= 0:
                os.close(fd)
            continue
        return name, os.open(name, _DIRECTORY, dir_fd=root)
    raise NoRoomError(f"{base}: {MAX_ATTEMPTS} runs of this name already")


def _holds_ranks_of(top: int, is_our_users: Callable[[bytes], bool]) -> bool:
    entries = os.listdir(top)
    if SUMMARY_NAME in entries:
        return False
    for name in entries:
        fd = _open_folder(top, name) if name.startswith("rank") else -1
        if fd < 0:
            continue
        summary = read_file(fd, SUMMARY_NAME)
        os.close(fd)
        if summary:
            return is_our_users(summary)
    return True


def _open_folder(parent: int, name: str) -> int:
    """A descriptor of the real directory `name`, or -1 (a link, a file, not ours to read)."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    except OSError:
        return -1


def open_subdirectory(parent: int, name: str) -> int:
    """A descriptor of the folder `name` below `parent`, made when it is not there. Raises OSError (a link included)."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=parent)
    return os.open(name, _DIRECTORY, dir_fd=parent)


def read_file(directory: int, name: str, limit_bytes: int = 1 << 20) -> bytes:
    """The start of a small regular file; empty when it cannot be read."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)
    except OSError:
        return b""
    try:
        return os.read(fd, limit_bytes)
    except OSError:
        return b""
    finally:
        os.close(fd)


def replace_file(directory: int, name: str, data: bytes) -> None:
    """Write a file so that a reader sees the old or the new one, whole. Raises OSError.

    On a full disk the old one is overwritten where it lies, when it has the room: what could not be recorded must at least
    be told. A reader that comes in that instant may see a mixture, which is not JSON.
    """
    try:
        _write_beside(directory, name, data)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT} or not overwrite(directory, name, data):
            raise


def _write_beside(directory: int, name: str, data: bytes) -> None:
    temporary = f".{name}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o644, dir_fd=directory)
    try:
        _write_whole(fd, data)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)  # on a full disk a torn file only takes room
        raise


def _write_whole(fd: int, data: bytes) -> None:
    """Write and close. Raises OSError, also where only a part found room."""
    try:
        written = os.write(fd, data)
    finally:
        os.close(fd)
    if written != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def overwrite(directory: int, name: str, data: bytes) -> bool:
    """Put JSON into the blocks that a file has already; False when it has none or too few."""
    try:
        fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        if len(data) > status.st_blocks * 512:
            return False
        padded = data.ljust(status.st_size)  # JSON may end in blanks; cutting it would be a second step
        return os.pwrite(fd, padded, 0) == len(padded)
    except OSError:
        return False
    finally:
        os.close(fd)
