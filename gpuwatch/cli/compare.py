"""`gpuwatch compare`: runs side by side: accuracy and its gap, speed, memory, findings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from gpuwatch.cli import recorded
from gpuwatch.cli.reading import past_of
from gpuwatch.cli.terminal import dim, paint
from gpuwatch.history import comparison
from gpuwatch.history.measures import measure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuwatch.history.comparison import Row

_RATIO_COLUMNS = ("speed-up", "saved")


@click.command(short_help="Compare runs: accuracy and its gap, speed, memory.")
@click.argument("runs", nargs=-1, required=True, shell_complete=recorded.complete, metavar="RUN RUN...")
@recorded.logdir_option
@click.option("--json", "as_json", is_flag=True, help="Print an array with one object for each run.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the table as Markdown.")
def command(runs: tuple[str, ...], logdir: Path | None, as_json: bool, as_markdown: bool) -> None:
    """Compare RUNs with the first one: train and validation accuracy or loss and the gap between them, it/s, peak memory.

    Speed is the median step after the first ten; accuracy and validation loss are what the job logged itself, through
    SummaryWriter or gpuwatch.log, under tags like Accuracy/val. The last logged value counts; --json has the best one too.

    \b
    Examples:
      gpuwatch compare plain dropout weight-decay
      gpuwatch compare fp32 amp --markdown >> notes.md
    """
    if as_json and as_markdown:
        raise click.UsageError("--json and --markdown exclude each other")
    place = recorded.log_directory(logdir)
    found = [recorded.find(name, place) for name in runs]
    rows = comparison.compare([(ranks[0].summary.run, measure(past_of(ranks[0]))) for ranks in found])
    if as_json:
        click.echo(json.dumps([_facts(row) for row in rows], indent=2))
    elif as_markdown:
        click.echo(comparison.markdown(rows), nl=False)
    else:
        _show(rows)
    several = [
        f"{ranks[0].summary.run} by rank {ranks[0].summary.rank} of {_size(ranks)}" for ranks in found if _size(ranks) > 1
    ]
    if several and not as_json:
        click.echo(f"Runs of several ranks are shown by one: {', '.join(several)}", err=as_markdown)


def _size(ranks: list[recorded.Recorded]) -> int:
    return len({process.summary.rank for process in ranks})


def _facts(row: Row) -> dict[str, object]:
    facts: dict[str, object] = msgspec.to_builtins(row.measures)
    ratios = {"speedup_ratio": row.speedup_ratio, "memory_saving_ratio": row.memory_saving_ratio}
    gaps = {"accuracy_gap": row.measures.accuracy_gap, "loss_gap": row.measures.loss_gap}
    return {"run": row.run, **facts, **gaps, **ratios}


def _show(rows: Sequence[Row]) -> None:
    heading, *lines = comparison.table(list(rows))
    widths = [max(map(len, column)) for column in zip(heading, *lines, strict=True)]
    click.echo(dim("  ".join(name.ljust(width) for name, width in zip(heading, widths, strict=True)).rstrip()))
    for index, line in enumerate(lines):
        cells = [(cell or "-").ljust(width) for cell, width in zip(line, widths, strict=True)]
        if index:
            cells = [
                paint(cell, "green" if not cell.startswith(("0.", "-")) else "") if name in _RATIO_COLUMNS else cell
                for name, cell in zip(heading, cells, strict=True)
            ]
        click.echo("  ".join(cells).rstrip())
