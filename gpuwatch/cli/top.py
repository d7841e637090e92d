"""`gpuwatch top`: GPUs, their processes and the training jobs on them, live in the terminal or once as text or JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpuwatch.cli import recorded
from gpuwatch.cli.terminal import coloured

if TYPE_CHECKING:
    from gpuwatch.top.feed import Feed
    from gpuwatch.top.lines import Line

#: NVML of eight GPUs without persistence mode takes tens of seconds to start: then the rest is shown.
_PATIENCE_SECONDS = 10.0
_EMPHASES = ("bold", "dim", "reverse")
_NO_TEXTUAL = (
    "the live view needs Textual, which is not installed here: "
    "pip install 'textual>=8.2,<9' brings it; gpuwatch top --once and --json work without it"
)


@click.command(short_help="Show GPUs, processes and training jobs live.")
@click.option("--once", is_flag=True, help="Print what there is now and end.")
@click.option("--json", "as_json", is_flag=True, help="Print what there is now as one JSON object and end.")
@click.option("--readonly", is_flag=True, help="Leave out everything that could touch a process.")
@click.option("--logdir", type=click.Path(path_type=Path), metavar="DIR", help="Show the runs recorded here.")
def command(once: bool, as_json: bool, readonly: bool, logdir: Path | None) -> None:
    """Show GPUs, the processes on them and the training jobs, live.

    Reads the daemon that runs here; without one, top samples by itself.

    \b
    Example:
      gpuwatch top
      gpuwatch top --once --logdir /data/runs
      gpuwatch top --json | jq '.gpus[].values.memory_used_peak_bytes'
    """
    if not (once or as_json):
        _live(logdir, readonly=readonly)
        return
    from gpuwatch.top.history import History

    feed = _feed(logdir)
    try:
        reading = feed.first(_PATIENCE_SECONDS)
    finally:
        feed.close()
    if as_json:
        from gpuwatch.top import as_json as json_view

        click.echo(json.dumps(json_view.tree(reading), indent=2))
        return
    from gpuwatch.top import screen

    for line in screen.once(reading, History(), shutil.get_terminal_size((120, 24)).columns):
        click.echo(_painted(line))


def _live(logdir: Path | None, *, readonly: bool) -> None:
    try:
        from gpuwatch.top.app import TopApp
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("textual", "rich"):
            raise
        raise click.ClickException(_NO_TEXTUAL) from None
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("the live view needs a terminal; --once and --json print what there is now")
    for name in ("COLUMNS", "LINES"):  # exported once, by a shell or by readline, they would outlast every resize
        os.environ.pop(name, None)
    sys.exit(TopApp(_feed(logdir), readonly=readonly).run() or 0)


def _feed(logdir: Path | None) -> Feed:
    from gpuwatch.top.feed import Feed
    from gpuwatch.top.reading import Job

    def jobs() -> list[Job]:
        return [Job(process.summary, process.status) for process in recorded.scan(recorded.log_directory(logdir))]

    return Feed(jobs, logdir)


def _painted(line: Line) -> str:
    if not coloured():
        return "".join(segment.text for segment in line).rstrip()
    told = []
    for text, style in line:
        colours = [word for word in style.split() if word not in _EMPHASES]
        emphases = {word: True for word in _EMPHASES if word in style.split()}
        told.append(click.style(text, fg=colours[0] if colours else None, **emphases) if style else text)
    return "".join(told).rstrip()
