"""`gpuwatch runs`: the runs below a log directory, one line each."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpuwatch.cli import recorded, standing
from gpuwatch.cli.terminal import dim, number, paint, quantity_of_seconds
from gpuwatch.state import summary
from gpuwatch.state.findings import gravest

if TYPE_CHECKING:
    from gpuwatch.cli.recorded import Recorded

_UNLIMITED = 10_000  # into a pipe
STATUS_COLOURS = {"live": "green", "finished": "", "failed": "red", "lost": "red"}


@click.command(short_help="List recorded and live runs.")
@recorded.logdir_option
@click.option("--json", "as_json", is_flag=True, help="Print an array with one object for each process of each run.")
def command(logdir: Path | None, as_json: bool) -> None:
    """List recorded and live runs, the newest last.

    \b
    Example:
      gpuwatch runs --logdir /data/runs
    """
    place = recorded.log_directory(logdir)
    found = recorded.scan(place)
    if as_json:
        click.echo(json.dumps([facts(process) for process in found], indent=2))
        return
    if not found:
        click.echo(recorded.nothing_in(place), err=True)
        return
    by_run: dict[str, list[Recorded]] = {}
    for process in found:
        by_run.setdefault(process.summary.run, []).append(process)
    rows = [_row(processes) for processes in by_run.values()]
    colours = [STATUS_COLOURS[_worst(processes).status] for processes in by_run.values()]
    widths = _fitted(rows, shutil.get_terminal_size((_UNLIMITED, 24)).columns)
    click.echo(dim("  ".join(name.ljust(width) for name, width in widths.items()).rstrip()))
    for row, colour in zip(rows, colours, strict=True):
        cells = {name: row[name].ljust(width) for name, width in widths.items()}
        cells["STATUS"] = paint(cells["STATUS"], colour)
        click.echo("  ".join(cells.values()).rstrip())


def _fitted(rows: list[dict[str, str]], columns: int) -> dict[str, int]:
    """The columns to show and their widths; on a narrow terminal findings are abbreviated, then some columns left out."""
    names = list(rows[0])

    def widths() -> dict[str, int]:
        return {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}

    def too_wide() -> bool:
        return sum(widths().values()) + 2 * (len(names) - 1) > columns

    if too_wide():
        for row in rows:
            first, *others = row["FINDINGS"].split(", ")
            row["FINDINGS"] = f"{first} +{len(others)}" if others else first
    for name in ("RANKS", "LASTED", "STARTED", "LOSS"):
        if too_wide():
            names.remove(name)
    return widths()


def facts(process: Recorded) -> dict[str, Any]:
    """One process of a run as --json shows it: what to list by; `gpuwatch status --json` has the rest."""
    known = process.summary
    return {
        "run": known.run,
        "path": str(process.path),
        "rank": known.rank,
        "world_size": known.world_size,
        "attempt": known.attempt,
        "status": process.status,
        "standing": standing.whole(process),
        "step": known.step,
        "kept_step": known.step if known.kept_step is None else known.kept_step,
        "loss": known.values.get("loss"),
        "steps_per_second": process.steps_per_second,
        "started_wall_seconds": known.started_wall_seconds,
        "updated_wall_seconds": known.updated_wall_seconds,
        "findings": sorted({finding.rule for finding in known.findings}),
        "active_findings": sorted({finding.rule for finding in known.findings if finding.state == "active"}),
    }


def _latest(processes: list[Recorded]) -> Recorded:
    return max(processes, key=lambda process: process.summary.updated_wall_seconds)


def _worst(processes: list[Recorded]) -> Recorded:
    """The process that a run's status is taken from: of its last attempt a live one, else one that did not end well."""
    attempt = _latest(processes).summary.attempt
    order = ("live", "failed", "lost", "finished")
    return min((p for p in processes if p.summary.attempt == attempt), key=lambda process: order.index(process.status))


def _row(processes: list[Recorded]) -> dict[str, str]:
    latest = _latest(processes)
    loss = latest.summary.values.get("loss")
    rules = gravest((finding.rule, finding.severity) for process in processes for finding in process.summary.findings)
    return {
        "RUN": latest.summary.run,
        "STATUS": standing.short(_worst(processes)),
        "RANKS": str(latest.summary.world_size),
        "STEP": f"{max(process.summary.step for process in processes):,}",
        "LOSS": "-" if loss is None else number(summary.number(loss)),
        "STARTED": time.strftime("%Y-%m-%d %H:%M", time.localtime(latest.summary.started_wall_seconds)),
        "LASTED": quantity_of_seconds(latest.lasted_seconds),
        "FINDINGS": ", ".join(rules) or "none",
    }
