"""Pass a descriptor of the daemon's folder to hooks in another mount namespace, which cannot name it.

See hooks/gpuwatch_hooks/doorway.py for the other side.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gpuwatch.attach.entry import InjectError
from gpuwatch.attach.process import Process

_PEER = struct.Struct("iII")  # pid, uid, gid
_LOOK_SECONDS = 0.05


@contextmanager
def held_open(process: Process, folder: str) -> Iterator[str]:
    """While inside, `process` and nobody else is given a descriptor of `folder` at the path that this yields, as it names it.

    Raises InjectError where no socket can be put into its root.
    """
    path, outside = _place(process)
    over = threading.Event()
    with _listening(process, outside) as listening:
        passing = threading.Thread(target=_pass, args=(listening, process.pid, folder, over), daemon=True)
        passing.start()
        try:
            yield path
        finally:
            over.set()
            passing.join()


@contextmanager
def _listening(process: Process, outside: str) -> Iterator[socket.socket]:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        try:
            listening.bind(outside)
            os.chmod(outside, 0o600)
            if os.geteuid() != process.uid:
                os.chown(outside, process.uid, -1)
            listening.listen(1)
            listening.settimeout(_LOOK_SECONDS)
        except OSError as error:
            raise InjectError(f"no socket can be put into the root of process {process.pid} ({error.strerror})") from None
        yield listening
    finally:
        listening.close()
        with suppress(OSError):
            os.unlink(outside)


def _place(process: Process) -> tuple[str, str]:
    root = f"/proc/{process.pid}/root"
    for folder in (f"/run/user/{process.uid}", "/dev/shm", "/var/tmp", "/tmp"):  # noqa: S108  # unguessable, and bound exclusively
        if os.path.isdir(root + folder) and os.access(root + folder, os.W_OK):
            path = f"{folder}/gpuwatch-{secrets.token_hex(16)}.sock"
            return path, root + path
    raise InjectError("there is no folder in the root of the process that a socket could be put into")


def _pass(listening: socket.socket, pid: int, folder: str, over: threading.Event) -> None:
    while not over.is_set():
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            continue
        except OSError:
            return
        with connection:
            peer, _, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
            if peer != pid:
                continue
            descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
            try:
                socket.send_fds(connection, [b"d"], [descriptor])
            finally:
                os.close(descriptor)
