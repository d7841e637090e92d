"""Where the control socket lives: the same rules as the hooks', seen from the side that binds or asks.

Never /tmp and never an abstract name: anyone may take a name there before us, and an abstract one carries no permissions.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

SYSTEM_DIRECTORY = Path("/run/gpuwatch")
SOCKET_NAME = "gpuwatch.sock"


def user_socket(environ: Mapping[str, str] | None = None) -> Path:
    """The path of a user's own daemon: in $XDG_RUNTIME_DIR, else below ~/.cache."""
    environ = os.environ if environ is None else environ
    runtime = environ.get("XDG_RUNTIME_DIR")
    home = environ.get("HOME") or os.path.expanduser("~")  # Path.home() raises where a container's uid has none
    if not runtime and not os.path.isabs(home):
        runtime = f"/run/user/{os.geteuid()}"
    folder = Path(runtime) / "gpuwatch" if runtime else Path(home) / ".cache" / "gpuwatch" / "run"
    return folder / SOCKET_NAME


def socket_to_bind(configured: str = "", environ: Mapping[str, str] | None = None) -> Path:
    """Where a daemon listens: as told (flag, config, $GPUWATCH_SOCKET), else the system's place when it may write there."""
    environ = os.environ if environ is None else environ
    told = configured or environ.get("GPUWATCH_SOCKET")
    if told:
        return Path(told).absolute()
    # Under systemd with DynamicUser the daemon is not root, and /run/gpuwatch (RuntimeDirectory=) is its own.
    if os.geteuid() == 0 or os.access(SYSTEM_DIRECTORY, os.W_OK):
        return SYSTEM_DIRECTORY / SOCKET_NAME
    return user_socket(environ)


def socket_to_call(configured: str = "", environ: Mapping[str, str] | None = None) -> Path:
    """Where a client of this user looks for a daemon: as told, else the system's when it answers, else the user's own."""
    environ = os.environ if environ is None else environ
    told = configured or environ.get("GPUWATCH_SOCKET")
    if told:
        return Path(told).absolute()
    system = SYSTEM_DIRECTORY / SOCKET_NAME
    if os.geteuid() == 0 or answers(system):
        return system
    return user_socket(environ)


def answers(path: Path) -> bool:
    """Whether somebody accepts connections at `path` now (a full backlog counts as somebody)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True
