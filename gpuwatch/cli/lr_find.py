"""`gpuwatch lr-find`: a learning-rate range test in the user's own loop, without changing it."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpuwatch.cli import range_test, recorded
from gpuwatch.cli.injection import program_name
from gpuwatch.cli.job import end_like
from gpuwatch.cli.reading import past_of
from gpuwatch.cli.run import Options, supervise
from gpuwatch.cli.terminal import dim, paint
from gpuwatch.state.directories import reduce_name

if TYPE_CHECKING:
    from gpuwatch.cli.range_test import RangeTest

_RATE = click.FloatRange(0, min_open=True)


@click.command(
    "lr-find",
    short_help="Find a learning rate by a range test in your own loop.",
    context_settings={"allow_interspersed_args": False},
)
@click.option("--steps", type=click.IntRange(20, 100_000), default=range_test.STEPS, show_default=True, help="Optimizer steps.")
@click.option("--min", "least", type=_RATE, default=range_test.LEAST, show_default=True, metavar="LR", help="The first rate.")
@click.option("--max", "largest", type=_RATE, default=range_test.LARGEST, show_default=True, metavar="LR", help="The last.")
@click.option("--continue", "goes_on", is_flag=True, help="Put everything back after the test and train on.")
@click.option("--name", metavar="N", help="What the run is called; its program and the time, when not given.")
@click.option("--logdir", type=click.Path(path_type=Path), metavar="DIR", help="Record here, with a daemon for this run alone.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="F.png", help="Draw the curve here.")
@click.option("--json", "as_json", is_flag=True, help="Print the result and every point as one object.")
@click.argument("command_line", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD ...")
def command(
    *,
    steps: int,
    least: float,
    largest: float,
    goes_on: bool,
    name: str | None,
    logdir: Path | None,
    output: Path | None,
    as_json: bool,
    command_line: tuple[str, ...],
) -> None:
    """Ramp the learning rate in CMD's own loop from --min to --max, one optimizer step after the other, and record the loss.

    The loop is not changed: mixed precision, accumulation, clipping and several parameter groups (their ratios kept) are as
    in the training, schedulers are held. The test stops when the loss diverges; the command then ends at once, before it can
    save the model that the test has wrecked. With --continue everything is put back bit for bit, and it trains on; steps of
    schedulers that step once an epoch are taken after the test, those of ReduceLROnPlateau are left out.

    \b
    Examples:
      gpuwatch lr-find -- python train.py
      gpuwatch lr-find --max 1 --continue -- python train.py --epochs 3
    """
    if least >= largest:
        raise click.UsageError(f"--min {least:g} is not below --max {largest:g}")
    named = reduce_name(name or f"{program_name(command_line)}-lr-find-{time.strftime('%Y%m%d-%H%M%S')}")
    asked = {"lr_find": range_test.asked(steps, least, largest, goes_on=goes_on)}
    status = supervise(Options(command_line, named, logdir, None, quiet=True, asked=asked))
    place = recorded.log_directory(logdir)
    test, process = _found(named, place)
    if test is None or test.failed:
        why = test.failed if test is not None else "the command took too few optimizer steps"
        click.echo(f"gpuwatch: no range test: {why}", err=True)
        end_like(status or 1)
        return
    picture = _draw(test, output or process.path / "lr-find.png", process.path)
    if as_json:
        click.echo(json.dumps({"run": named, **test._asdict(), "points": [point._asdict() for point in test.points]}, indent=2))
    else:
        _show(test, picture)
    end_like(status)


def _found(name: str, place: Path) -> tuple[RangeTest | None, recorded.Recorded]:
    """The test of rank 0, and where it is recorded. Raises a click error when the command recorded nothing."""
    deadline = time.monotonic() + 3.0
    while True:
        ranks = [process for process in recorded.scan(place) if process.summary.run == name]
        if ranks or time.monotonic() > deadline:  # a shared daemon writes run.json about once a second
            break
        time.sleep(0.1)
    if not ranks:
        raise click.ClickException("no training step was seen: the test needs a command that trains with a torch optimizer")
    return range_test.of(past_of(ranks[0])), ranks[0]


def _draw(test: RangeTest, target: Path, directory: Path) -> str:
    """Draw the curve, into TensorBoard too; where it is, or why there is none."""
    try:
        from gpuwatch.report import lr_figure
    except ImportError:
        return "none: matplotlib is not installed here"
    try:
        image = lr_figure.png(test.points, test.suggestion, test.minimum_tenth)
        target.write_bytes(image)
        lr_figure.to_tensorboard(image, directory, len(test.points))
    except OSError as error:
        return f"none: {error.filename or target} cannot be written ({error.strerror})"
    return str(target)


def _show(test: RangeTest, picture: str) -> None:
    rates = [point.rate for point in test.points]
    ended = "until the loss diverged" if test.diverged else "to the end"
    if test.cut_short:
        ended = "until the command ended, with fewer optimizer steps than the test"
    if not math.isfinite(test.points[-1].loss):
        ended = "until the loss was not finite"
    click.echo(f"{len(rates)} point{'' if len(rates) == 1 else 's'} from {rates[0]:.2g} to {rates[-1]:.2g}, {ended}")
    for line in range_test.plot(test):
        click.echo(line)
    steepest = "none: the loss fell nowhere" if test.suggestion is None else f"{test.suggestion:.2g}"
    tenth = "none" if test.minimum_tenth is None else f"{test.minimum_tenth:.2g}"
    steepest_why = "" if test.suggestion is None else "  where the smoothed loss falls fastest"
    tenth_why = "" if test.minimum_tenth is None else "  the careful choice"
    click.echo(f"  {dim('suggestion')}              {paint(steepest, 'green', bold=True)}{steepest_why}")
    click.echo(f"  {dim('a tenth of the minimum')}  {tenth}{tenth_why}")
    click.echo(f"  {dim('picture')}                 {picture}")
