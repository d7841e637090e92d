"""Whether a job of another user may come to the daemon's socket: root attaches to anybody's job, but the job calls."""

from __future__ import annotations

import os
from pathlib import Path

from gpuwatch.attach.process import Process

_READ_WRITE, _SEARCH = 6, 1
_ACL = "system.posix_acl_access"


def closed_to(process: Process, socket_path: str) -> str:
    """The folder, or the socket, that the owner of `process` may not pass; "" where nothing is seen to be in the way."""
    if process.uid == 0 or not os.path.exists(socket_path):
        return ""
    groups = _groups(process.pid)
    path = Path(os.path.abspath(socket_path))
    for place in [*reversed(path.parents), path]:
        if not _allows(place, process.uid, groups, _READ_WRITE if place == path else _SEARCH):
            return str(place)
    return ""


def _allows(place: Path, uid: int, groups: set[int], wanted: int) -> bool:
    try:
        found = place.stat()
        if _ACL in os.listxattr(place):  # says more than the mode does: left to the kernel
            return True
    except OSError:
        return True
    shift = 6 if found.st_uid == uid else 3 if found.st_gid in groups else 0
    return found.st_mode >> shift & wanted == wanted


def _groups(pid: int) -> set[int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return {int(word) for line in lines if line.startswith(("Gid:", "Groups:")) for word in line.split()[1:]}
