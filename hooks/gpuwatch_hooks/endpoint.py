"""Where the daemon listens, and whether what listens there is a daemon that may see this job's memory.

Sockets live where only their owner can put them; still, a path can be squatted. The ring's descriptor is passed only when
the kernel says that the listener is root, ourselves, or the owner of /run/gpuwatch.
"""

import os
import socket
import struct

SYSTEM_FOLDER = "/run/gpuwatch"
CONNECT_TIMEOUT_SECONDS = 2.0
_PEER = struct.Struct("iII")  # pid, uid, gid


class UntrustedError(Exception):
    """Something listens at the path, but it is nobody whom we trust."""


def candidates(explicit=None):
    """Paths to try, in order: the explicit one alone, or the system's, the session's and the user's."""
    if explicit:
        return [explicit]
    paths = [os.path.join(SYSTEM_FOLDER, "gpuwatch.sock")]
    home = os.path.expanduser("~")  # "~" itself for a container's uid without a home
    runtime = os.environ.get("XDG_RUNTIME_DIR") or ("" if os.path.isabs(home) else "/run/user/%d" % os.geteuid())
    if runtime:
        paths.append(os.path.join(runtime, "gpuwatch", "gpuwatch.sock"))
    if os.path.isabs(home):
        paths.append(os.path.join(home, ".cache", "gpuwatch", "run", "gpuwatch.sock"))
    return paths


def peer_uid(connection):
    """uid of the process that listens at the other end, as the kernel recorded it."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return _PEER.unpack(raw)[1]


def is_trusted(uid):
    """Root, ourselves, or gpuwatch's own user (who owns /run/gpuwatch)."""
    if uid in (0, os.getuid()):
        return True
    try:
        return uid == os.lstat(SYSTEM_FOLDER).st_uid
    except OSError:
        return False


def _check(connection, path):
    uid = peer_uid(connection)
    if not is_trusted(uid):
        raise UntrustedError("%s belongs to uid %d, who is neither root, gpuwatch nor you" % (path, uid))


def connect(explicit=None):
    """A connected SOCK_SEQPACKET socket to a trusted daemon, non-blocking. Raises OSError or UntrustedError."""
    failure = FileNotFoundError("no gpuwatch daemon")
    for path in candidates(explicit):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.settimeout(CONNECT_TIMEOUT_SECONDS)
            connection.connect(path)
            _check(connection, path)
            connection.setblocking(False)
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError):
                raise
            failure = error
        else:
            return connection
    raise failure
