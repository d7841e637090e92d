"""`gpuwatch status`: one run's health on one screen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import msgspec

from gpuwatch.cli import card, recorded, standing
from gpuwatch.cli.recorded import Recorded
from gpuwatch.state.summary import jsonable


@click.command(short_help="Show the health of one run.")
@click.argument("run", required=False, shell_complete=recorded.complete)
@recorded.logdir_option
@click.option("--json", "as_json", is_flag=True, help="Print everything known of each rank.")
def command(run: str | None, logdir: Path | None, as_json: bool) -> None:
    """Show the health of RUN: step, rate, loss, gradients, loss scale, phases, memory, findings.

    RUN is a name, the beginning of one, NAME/rankN, or a path; without it, the live run, else the newest one.

    \b
    Example:
      gpuwatch status digits
      watch -n1 gpuwatch status
    """
    place = recorded.log_directory(logdir)
    ranks = recorded.newest(place) if run is None else recorded.find(run, place)
    if as_json:
        click.echo(json.dumps({"run": ranks[0].summary.run, "ranks": [_facts(rank) for rank in ranks]}, indent=2))
        return
    for line in card.lines(ranks):
        click.echo(line)


def _facts(rank: Recorded) -> dict[str, Any]:
    facts: dict[str, Any] = msgspec.to_builtins(rank.summary, str_keys=True)
    for private in ("checkpoint", "identity", "version", "daemon"):
        del facts[private]
    for finding in facts["findings"]:
        finding.update({name: jsonable(finding[name]) for name in ("value", "threshold")})
    facts["pid"] = rank.summary.identity.pid
    facts["path"] = str(rank.path)
    facts["status"] = rank.status
    facts["standing"] = standing.whole(rank)
    facts["kept_step"] = rank.summary.step if rank.summary.kept_step is None else rank.summary.kept_step
    facts["steps_per_second"] = rank.steps_per_second
    return facts
