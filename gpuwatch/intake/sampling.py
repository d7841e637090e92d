"""Pausing and resuming the GPU sampler from outside: root and the daemon's own user may, everybody may ask how it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gpuwatch.intake.decode import SamplingRequest
    from gpuwatch.state.identity import Identity
    from gpuwatch.state.store import State

_ROOT = 0


class Sampler(Protocol):
    """What of the supervisor is asked for here."""

    def pause(self, *, release: bool = False) -> None:
        """Stop, and with `release` let go of the driver."""

    def resume(self) -> None:
        """Go on."""

    def child_pids(self) -> list[int]:
        """The processes that may have the driver open."""


def obey(request: SamplingRequest, caller: Identity, sampler: Sampler | None, state: State) -> dict[str, object]:
    """The reply: {t: done, state, message, processes: those that may have the driver open}, or {t: refuse, reason}.

    A pause is in force when this returns. A release is complete once there are no processes: ask for the state until then.
    """
    if request.verb != "state":
        if caller.uid not in {_ROOT, os.geteuid()}:
            return _no(f"the daemon belongs to uid {os.geteuid()}, you are {caller.uid}: ask with sudo")
        if sampler is None:
            return _no("this daemon does not sample GPUs (sampling.gpus is false)")
        if request.verb == "pause":
            sampler.pause(release=request.release)
        else:
            sampler.resume()
    with state.lock:
        how, message = state.gpus.state, state.gpus.message
    return {"t": "done", "state": how, "message": message, "processes": [] if sampler is None else sampler.child_pids()}


def _no(reason: str) -> dict[str, object]:
    return {"t": "refuse", "reason": reason}
