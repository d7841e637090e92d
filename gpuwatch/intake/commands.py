"""What another program may ask of a connected job: fixed verbs, and only root or the job's own user may ask.

Over the control socket, so that `gpuwatch attach` and `detach` need no right to trace a job that has the hooks in it already.
"""

from __future__ import annotations

from collections.abc import Iterable

from gpuwatch.intake.decode import Command
from gpuwatch.intake.peers import PeerError
from gpuwatch.intake.sessions import Session
from gpuwatch.state.identity import Identity

_ROOT = 0


def obey(command: Command, caller: Identity, sessions: Iterable[Session]) -> dict[str, object]:
    """Pass `command` on to the job; the reply for its `caller`: {t: done} or {t: refuse, reason}."""
    for session in sessions:
        if session.identity.pid != command.pid or session.peer is None:
            continue
        if caller.uid not in {_ROOT, session.identity.uid}:
            return _no(f"process {command.pid} belongs to uid {session.identity.uid}, you are {caller.uid}")
        try:
            session.peer.send({"t": command.verb, **command.settings})
        except PeerError:
            break
        return {"t": "done"}
    return _no(f"no hooks of process {command.pid} are connected to this daemon")


def _no(reason: str) -> dict[str, object]:
    return {"t": "refuse", "reason": reason}
