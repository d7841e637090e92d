"""`gpuwatch alerts`: the findings of recorded and live runs, as a list or as they come."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from gpuwatch.cli import card, recorded
from gpuwatch.cli.terminal import dim
from gpuwatch.state.summary import jsonable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpuwatch.cli.recorded import Recorded
    from gpuwatch.state.findings import Finding

#: A daemon replaces run.json about once a second.
_POLL_SECONDS = 0.5


class _Entry(NamedTuple):
    """A finding as the list shows it; `state` is closed for a run that no longer lives, whatever its daemon last wrote."""

    directory: str
    finding: Finding
    state: str

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.directory, self.finding.rule, self.finding.layer, self.finding.step

    @property
    def news(self) -> tuple[str, str]:
        """What is told again when it has changed."""
        return self.state, self.finding.severity


@click.command(short_help="List findings, or follow them as they come.")
@click.argument("run", required=False, shell_complete=recorded.complete)
@click.option("--follow", "-f", is_flag=True, help="Go on: print each finding as it opens, grows more severe or closes.")
@recorded.logdir_option
@click.option("--json", "as_json", is_flag=True, help="Print an array of objects; with --follow, one object a line.")
def command(run: str | None, follow: bool, logdir: Path | None, as_json: bool) -> None:
    """List the findings of RUN, or of every run in the log directory, the newest last.

    RUN is a name, the beginning of one, NAME/rankN, or a path. With --follow the command ends when RUN has ended; without
    RUN it goes on until Ctrl-C.

    \b
    Examples:
      gpuwatch alerts digits
      gpuwatch alerts --follow
      gpuwatch alerts --json | jq '.[] | select(.severity == "critical")'
    """
    place = recorded.log_directory(logdir)
    if follow:
        try:
            _follow(run, place, as_json)
        except KeyboardInterrupt:
            raise SystemExit(0) from None
        return
    entries = _entries(_processes(run, place))
    if as_json:
        click.echo(json.dumps([_facts(entry) for entry in entries], indent=2))
        return
    if not entries:
        click.echo(f"no findings in {run or place}", err=True)
    for entry in entries:
        _show(entry)


def _follow(run: str | None, place: Path, as_json: bool) -> None:
    told: dict[tuple[str, str, str, int], tuple[str, str]] = {}
    while True:
        processes = _processes(run, place)
        for entry in _entries(processes):
            if told.get(entry.key) != entry.news:
                told[entry.key] = entry.news
                if as_json:
                    click.echo(json.dumps(_facts(entry)))
                else:
                    _show(entry)
        if run is not None and all(process.status != "live" for process in processes):
            return
        time.sleep(_POLL_SECONDS)


def _processes(run: str | None, place: Path) -> list[Recorded]:
    return recorded.scan(place) if run is None else recorded.find(run, place)


def _entries(processes: list[Recorded]) -> list[_Entry]:
    found = [
        _Entry(process.summary.directory, finding, finding.state if process.status == "live" else "closed")
        for process in processes
        for finding in process.summary.findings
    ]
    return sorted(found, key=lambda entry: (entry.finding.time, entry.finding.step))


def _facts(entry: _Entry) -> dict[str, Any]:
    """The contract's keys. A value or threshold that is not finite is a string: JSON has no such numbers."""
    finding = entry.finding
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "run": finding.run,
        "rank": finding.rank,
        "step": finding.step,
        "first_step": finding.first_step,
        "last_step": finding.last_step,
        "time": finding.time,
        "layer": finding.layer,
        "value": jsonable(finding.value),
        "threshold": jsonable(finding.threshold),
        "summary": finding.summary,
        "action": finding.action,
        "state": entry.state,
    }


def _show(entry: _Entry) -> None:
    for line in _lines(entry):
        click.echo(line)


def _lines(entry: _Entry) -> Iterator[str]:
    finding = entry.finding
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(finding.time)) if finding.time else "time unknown"
    steps = "" if entry.state == "active" else f" (steps {finding.first_step:,} to {finding.last_step:,})"
    yield f"{when}  {entry.directory}  step {finding.step:,}  {dim(entry.state + steps)}"
    yield from card.finding_lines(finding)
