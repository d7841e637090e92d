"""`gpuwatch advise`: the roadmap from FP32 to quantisation: where a run stands and what the next step would bring."""

from __future__ import annotations

import json
import shutil
import statistics
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from gpuwatch.advice.roadmap import roadmap
from gpuwatch.advice.station import Subject
from gpuwatch.cli import live_job, on_demand, recorded
from gpuwatch.cli.reading import past_of
from gpuwatch.cli.terminal import dim, paint
from gpuwatch.history import matrix_share
from gpuwatch.history.measures import measure
from gpuwatch.state import activity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpuwatch.advice.station import Station
    from gpuwatch.cli.recorded import Recorded

_SIGNS = {"done": "✓", "next": "→", "later": "·", "idle": "-", "unknown": "?"}
_COLOURS = {"done": "green", "next": "yellow", "later": "", "idle": "", "unknown": "cyan"}
_WIDTH = 110
_TRACED_STEPS = 3


@click.command(short_help="Say what would speed this run up next.")
@click.argument("run", required=False, shell_complete=recorded.complete)
@recorded.logdir_option
@click.option("--trace", is_flag=True, help="First take a profiler trace of three steps: the share of matrix products.")
@click.option("--timeout", type=click.FloatRange(min=1.0), default=120.0, show_default=True, help="Seconds to wait for it.")
@click.option("--json", "as_json", is_flag=True, help="Print the stations as an array.")
def command(*, run: str | None, logdir: Path | None, trace: bool, timeout: float, as_json: bool) -> None:
    """Where RUN stands on the roadmap FP32, mixed precision, accumulation, distributed, quantisation, and what comes next.

    Each gain says whether it was measured in this run or is an estimate, a bound that follows from what was measured.
    Without RUN, the live run, else the newest one.

    \b
    Examples:
      gpuwatch advise digits
      gpuwatch advise digits --trace
    """
    place = recorded.log_directory(logdir)
    if trace:
        target = run or recorded.newest(place)[0].summary.run
        on_demand.fetch(live_job.find(target, logdir)[0], "trace", "trace", {"steps": _TRACED_STEPS}, timeout)
    ranks = recorded.newest(place) if run is None else recorded.find(run, place)
    stations = roadmap(subject_of(ranks))
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(station) for station in stations], indent=2))
        return
    click.echo(paint(ranks[0].summary.run, "", bold=True))
    for station in stations:
        for line in _lines(station):
            click.echo(line)


def subject_of(ranks: list[Recorded]) -> Subject:
    """A recorded run as the stations look at it: rank 0's journal is read, of the others their last window."""
    first = ranks[0]
    past = past_of(first)
    times = {rank.summary.rank: 1 / rank.steps_per_second for rank in ranks[1:] if rank.steps_per_second}
    took = [value for value in past.values("step_seconds") if value > 0.0]
    if took:
        times[first.summary.rank] = statistics.median(took[-1024:])
    return Subject(
        past,
        measure(past),
        times,
        first.summary.world_size,
        first.summary.hello.device,
        matrix_share.of_run(past, first.path),
        activity.of(first.summary.facts),
        all(rank.status != "live" for rank in ranks),
    )


def _lines(station: Station) -> Iterator[str]:
    sign = paint(_SIGNS[station.standing], _COLOURS[station.standing], bold=station.standing == "next")
    yield f"{sign} {paint(station.name, '', bold=station.standing == 'next')}  {dim(station.standing)}"
    if station.evidence:
        yield from _wrapped(f"measured: {' '.join(station.evidence)}")
    if station.gain is not None:
        yield from _wrapped(f"gain ({station.gain.basis}): {station.gain.text}")
    if station.action:
        yield from _wrapped(f"do: {station.action}")


def _wrapped(text: str) -> list[str]:
    width = min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns)
    return textwrap.wrap(text, max(40, width), initial_indent="    ", subsequent_indent="    ")
