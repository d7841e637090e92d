"""Asks the daemons of this user how they sample GPUs, and to stop or go on: for `pause`, `resume` and `doctor`."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from gpuwatch import paths
from gpuwatch.cli.terminal import paint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_REPLY_SECONDS = 5.0
_MAX_REPLY_BYTES = 65536
_LOOK_SECONDS = 0.05


class Sampling(msgspec.Struct):
    """How one daemon samples. Not `done`: it was not asked, or refused, and `message` says why."""

    socket: str
    done: bool = True
    state: str = ""  # starting, sampling, absent, failing, paused, off
    message: str = ""
    processes: list[int] = []  # of the daemon, that may have the driver open


def sockets() -> list[Path]:
    """The daemons that answer: the one that jobs call, then those that `gpuwatch run` keeps for one run."""
    main = paths.socket_to_call()
    folders = dict.fromkeys((main.parent, paths.user_socket().parent))
    private = [path for folder in folders for path in sorted(folder.glob("run-*.sock"))]
    return [path for path in dict.fromkeys((main, *private)) if paths.answers(path)]


def ask(path: Path, verb: str = "state", *, release: bool = False) -> Sampling:
    """One question to the daemon at this socket."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(_REPLY_SECONDS)
            connection.connect(str(path))
            connection.send(json.dumps({"t": "sampling", "verb": verb, "release": release}).encode())
            reply: dict[str, Any] = json.loads(connection.recv(_MAX_REPLY_BYTES) or b"{}")
    except (OSError, ValueError) as error:
        return Sampling(str(path), done=False, message=f"it does not answer ({error})")
    if reply.get("t") != "done":
        return Sampling(str(path), done=False, message=str(reply.get("reason", "it did not understand")))
    return Sampling(str(path), state=reply["state"], message=reply["message"], processes=reply["processes"])


def act(verb: str, is_complete: Callable[[Sampling], bool], timeout_seconds: float, *, release: bool = False) -> list[Sampling]:
    """The same of every daemon, and how they are once all is complete or the time is over. Raises a click error for none."""
    paths_asked = sockets()
    if not paths_asked:
        raise click.ClickException("no gpuwatch daemon of yours answers: nothing samples (gpuwatch doctor says more)")
    found = [ask(path, verb, release=release) for path in paths_asked]
    deadline = time.monotonic() + timeout_seconds
    while not all(not one.done or is_complete(one) for one in found) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        found = [ask(path) if one.done else one for path, one in zip(paths_asked, found, strict=True)]
    return found


def show(found: list[Sampling], is_complete: Callable[[Sampling], bool], *, as_json: bool) -> None:
    """A line each, or JSON; exit 1 when one refused, or is not there yet."""
    good = [one.done and is_complete(one) for one in found]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        for one, fine in zip(found, good, strict=True):
            words = one.message or {"starting": "sampling begins"}.get(one.state, one.state)
            click.echo(f"{one.socket}: {paint(words, 'green' if fine else 'red')}")
    if not all(good):
        raise SystemExit(1)
