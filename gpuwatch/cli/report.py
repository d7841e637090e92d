"""`gpuwatch report`: one self-contained page about a run, with pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpuwatch.advice.roadmap import roadmap
from gpuwatch.cli import recorded
from gpuwatch.cli.advise import subject_of

if TYPE_CHECKING:
    from gpuwatch.report.blocks import Page


@click.command(short_help="Write one page about a run, with pictures.")
@click.argument("run", required=False, shell_complete=recorded.complete)
@recorded.logdir_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="F.html or F.md; RUN.html when not given.",
)
def command(run: str | None, logdir: Path | None, output: Path | None) -> None:
    """Write one self-contained page about RUN: findings, timeline, layers, speed, precision, memory, what to do next.

    An HTML page needs no other file and no network; Markdown (F.md) has its pictures beside it, in F_pictures/.
    Without RUN, the live run, else the newest one.

    \b
    Examples:
      gpuwatch report digits
      gpuwatch report digits -o notes/digits.md
    """
    from gpuwatch.report import as_html, as_markdown, content

    place = recorded.log_directory(logdir)
    ranks = recorded.newest(place) if run is None else recorded.find(run, place)
    target = output or Path(f"{ranks[0].summary.run}.html")
    if target.suffix.lower() not in {".html", ".htm", ".md", ".markdown"}:
        raise click.BadParameter(f"{target} ends neither in .html nor in .md", param_hint="-o")
    subject = subject_of(ranks)
    summaries, statuses = [rank.summary for rank in ranks], [rank.status for rank in ranks]
    page: Page = content.page(summaries, statuses, subject.past, subject.measures, roadmap(subject))
    try:
        if target.suffix.lower().startswith(".htm"):
            target.write_text(as_html.render(page), encoding="utf-8")
        else:
            text, files = as_markdown.render(page, f"{target.stem}_pictures")
            folder = target.with_name(f"{target.stem}_pictures")
            folder.mkdir(exist_ok=True)
            for name, svg in files.items():
                (folder / name).write_text(svg, encoding="utf-8")
            target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(
            f"{error.filename or target} cannot be written ({error.strerror}); choose another with -o"
        ) from None
    click.echo(str(target))
