"""A job that runs now, named by pid or by run: its ranks, and the daemon that its hooks talk to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import click

from gpuwatch import paths
from gpuwatch.attach import connected
from gpuwatch.cli import recorded
from gpuwatch.cli.recorded import Recorded


class LiveRank(NamedTuple):
    """One live process of a run, and where it is recorded."""

    pid: int
    process: Recorded


def find(target: str, logdir: Path | None) -> list[LiveRank]:
    """The live ranks of a run, by its name, path or the pid of one process of it. Raises a click error when there is none."""
    if target.isdigit():
        places = [_logdir_of(int(target)), logdir] if logdir is None else [logdir]
        for place in places:
            everything = recorded.scan(place if place is not None else recorded.log_directory(None))
            mine = [p for p in everything if p.summary.identity.pid == int(target) and p.status == "live"]
            if mine:
                return [LiveRank(int(target), mine[-1])]
        raise click.ClickException(
            f"no hooks of process {target} are recorded as live; put them in with: gpuwatch attach {target}"
        )
    found = recorded.find(target, recorded.log_directory(logdir))
    live = [LiveRank(process.summary.identity.pid, process) for process in found if process.status == "live"]
    if not live:
        raise click.ClickException(f"{found[0].summary.run} has ended ({found[0].status}); this needs a job that runs")
    return live


def tell(rank: LiveRank, verb: str, settings: dict[str, Any]) -> None:
    """Have the rank's daemon pass a verb on to its hooks. Raises a click error with the reason when nobody could."""
    reasons = []
    for candidate in _sockets(rank):
        try:
            reason = connected.ask(candidate, verb, rank.pid, settings)
        except (OSError, ValueError):
            continue
        if not reason:
            return
        reasons.append(reason)
    why = reasons[0] if reasons else "no daemon of this user answers"
    raise click.ClickException(f"the hooks of process {rank.pid} cannot be reached: {why}")


def _sockets(rank: LiveRank) -> list[Path]:
    """Where the rank's daemon may listen: where its environment says, the shared one, and private ones beside it."""
    shared = paths.socket_to_call()
    told = _environment(rank.pid, "GPUWATCH_SOCKET")
    private = sorted(paths.user_socket().parent.glob("run-*.sock"))
    return list(dict.fromkeys([*([Path(told)] if told else []), shared, *private]))


def _logdir_of(pid: int) -> Path | None:
    """The log directory of the private daemon of the job's `gpuwatch run`, told by its announcement; None when unknown."""
    from gpuwatch import announcement

    told = _environment(pid, "GPUWATCH_SOCKET")
    announced = announcement.read(Path(told)) if told else None
    return Path(announced.logdir) if announced is not None else None


def _environment(pid: int, name: str) -> str:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    prefix = name.encode() + b"="
    return next((os.fsdecode(v[len(prefix) :]) for v in variables if v.startswith(prefix)), "")
