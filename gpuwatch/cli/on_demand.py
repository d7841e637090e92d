"""A file asked of a running job: the verb passed on by its daemon, the answer waited for in the run's journal."""

from __future__ import annotations

import gzip
import secrets
import time
from pathlib import Path
from typing import Any

import click

from gpuwatch.cli import live_job, recorded
from gpuwatch.cli.live_job import LiveRank
from gpuwatch.history.parcels import Parcels
from gpuwatch.state import summary

_LOOK_SECONDS = 0.1


def fetch(rank: LiveRank, verb: str, kind: str, settings: dict[str, Any], timeout_seconds: float) -> bytes:
    """The unpacked file. Raises a click error when the job cannot give it, ends first, or takes too long."""
    ticket = secrets.randbits(48)
    try:
        parcels = Parcels(rank.process.path, kind)
    except OSError as error:
        raise click.ClickException(f"{rank.process.path} cannot be read ({error.strerror})") from None
    try:
        parcels.next()  # what is older than the question
        live_job.tell(rank, verb, {**settings, "ticket": ticket})
        return gzip.decompress(_await(rank, parcels, ticket, timeout_seconds))
    finally:
        parcels.close()


def _await(rank: LiveRank, parcels: Parcels, ticket: int, timeout_seconds: float) -> bytes:
    deadline = time.monotonic() + timeout_seconds
    while True:
        for media in parcels.next():
            if media.tag == str(ticket):
                return media.data
        known = summary.decode((rank.process.path / "run.json").read_bytes())
        if known is not None and known.facts.get("on_demand_ticket") == ticket:
            raise click.ClickException(str(known.facts.get("on_demand_failed", "the job could not do it")))
        if known is None or recorded.Recorded(rank.process.path, known).status != "live":
            raise click.ClickException("the job ended before it could answer")
        if time.monotonic() > deadline:
            raise click.ClickException(f"no answer after {timeout_seconds:g} s; --timeout waits longer")
        time.sleep(_LOOK_SECONDS)


def write(target: Path, data: bytes) -> None:
    """Write the file and say where. Raises a click error."""
    try:
        target.write_bytes(data)
    except OSError as error:
        raise click.ClickException(f"{target} cannot be written ({error.strerror}); choose another with -o") from None
    click.echo(f"{target}  {len(data) / (1 << 20):.1f} MiB")
