"""The socket that the HTTP server listens on: loopback unless told otherwise, and bound at once: a port in use shows."""

from __future__ import annotations

import errno
import os
import socket


class ListenError(Exception):
    """The address cannot be served; the text is one sentence that says what to do."""


def listen(address: tuple[str, int], *, allow_remote: bool) -> socket.socket:
    """A non-blocking listening socket. Raises ListenError."""
    where = f"{bracketed(address[0])}:{address[1]}"
    try:
        family, kind, _, _, resolved = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise ListenError(f"cannot listen on {where}: {error.strerror}") from None
    if not is_loopback(str(resolved[0])) and not allow_remote:
        raise ListenError(
            f"refusing to listen on {where}: it is not a loopback address, and there is no TLS and no password here. Keep "
            f"127.0.0.1 and reach it through `ssh -L {address[1]}:127.0.0.1:{address[1]} NODE` or a reverse proxy that has "
            "both; or set prometheus.allow_remote = true if everybody who can reach this address may see the runs"
        )
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(resolved)
        listener.listen(64)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            hint = "is another gpuwatch daemon running? choose another port with --listen"
            raise ListenError(f"cannot listen on {where}: the port is in use; {hint}") from None
        raise ListenError(f"cannot listen on {where}: {os.strerror(error.errno or 0)}") from None
    return listener


def is_loopback(address: str) -> bool:
    return address == "::1" or (address.startswith("127.") and ":" not in address)


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
