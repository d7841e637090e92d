"""The daemon's folder from another mount namespace: a descriptor of it, handed over once, is a way there for ever.

A job in a container cannot name the daemon's socket. Whoever attaches can enter both file systems: it waits for us at a
socket inside ours and passes a descriptor of the folder. `/proc/self/fd/N/gpuwatch.sock` leads there from then on, also to
a daemon that was started anew. The kernel still asks whether we may enter that folder.
"""

import os
import socket

_PATIENCE_SECONDS = 5.0


def opened(path):
    """The descriptor that is passed at `path`, for the caller to close. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(_PATIENCE_SECONDS)
        connection.connect(path)
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
    if len(descriptors) != 1:
        raise OSError("nothing was passed")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def path_through(descriptor, name):
    """How the file `name` in that folder is reached."""
    return "/proc/self/fd/%d/%s" % (descriptor, name)
