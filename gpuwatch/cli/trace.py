"""`gpuwatch trace`: torch.profiler on demand in the running job."""

from __future__ import annotations

import gzip
from pathlib import Path

import click

from gpuwatch.cli import live_job, on_demand, recorded

#: What the hooks take, and what fits into a message, as a rule.
_MAX_STEPS = 100


@click.command(short_help="Take a profiler trace of a running job.")
@click.argument("target", metavar="PID|RUN", shell_complete=recorded.complete)
@click.option("--steps", type=click.IntRange(1, _MAX_STEPS), default=3, show_default=True, help="Training steps to trace.")
@click.option("--rank", type=click.IntRange(0), default=0, show_default=True, help="Which rank of the run.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="F.json or F.json.gz.")
@click.option("--timeout", type=click.FloatRange(min=1.0), default=120.0, show_default=True, help="Seconds to wait at most.")
@recorded.logdir_option
def command(*, target: str, steps: int, rank: int, output: Path | None, timeout: float, logdir: Path | None) -> None:
    """Run torch's profiler for a few steps inside a job that trains, and write a trace for Perfetto or chrome://tracing.

    The job goes on; the traced steps are slower, and the one behind them waits until the profiler has collected its events.

    \b
    Examples:
      gpuwatch trace 4711
      gpuwatch trace digits --steps 5 -o digits.json.gz
    """
    process = chosen(live_job.find(target, logdir), rank)
    data = on_demand.fetch(process, "trace", "trace", {"steps": steps}, timeout)
    place = output or Path(f"{process.process.summary.run}-trace.json.gz")
    on_demand.write(place, gzip.compress(data) if place.suffix == ".gz" else data)


def chosen(ranks: list[live_job.LiveRank], rank: int) -> live_job.LiveRank:
    """The live process of this rank. Raises a click error."""
    if len(ranks) == 1:
        return ranks[0]
    for candidate in ranks:
        if candidate.process.summary.rank == rank:
            return candidate
    alive = ", ".join(str(candidate.process.summary.rank) for candidate in ranks)
    raise click.BadParameter(f"rank {rank} is not live; {alive} are", param_hint="--rank")
