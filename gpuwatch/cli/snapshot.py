"""`gpuwatch snapshot`: the state of CUDA's caching allocator, on demand or from an out-of-memory error."""

from __future__ import annotations

import gzip
from pathlib import Path

import click

from gpuwatch.cli import live_job, on_demand, recorded
from gpuwatch.cli.trace import chosen
from gpuwatch.history.parcels import Parcels

_AT_ERROR = "out_of_memory"


@click.command(short_help="Write a snapshot of the CUDA allocator.")
@click.argument("target", metavar="PID|RUN", shell_complete=recorded.complete)
@click.option("--rank", type=click.IntRange(0), default=0, show_default=True, help="Which rank of the run.")
@click.option("--at-error", is_flag=True, help="The one that was taken when memory ran out, also of a run that has ended.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="F.pickle")
@click.option("--timeout", type=click.FloatRange(min=1.0), default=60.0, show_default=True, help="Seconds to wait at most.")
@recorded.logdir_option
def command(*, target: str, rank: int, at_error: bool, output: Path | None, timeout: float, logdir: Path | None) -> None:
    """Write what CUDA's caching allocator holds, segment by segment, for pytorch.org/memory_viz.

    The hooks take one by themselves when memory runs out, before the error reaches the job: --at-error writes that one.

    \b
    Examples:
      gpuwatch snapshot 4711
      gpuwatch snapshot digits --at-error -o oom.pickle
    """
    if at_error:
        process = recorded.find(target, recorded.log_directory(logdir))
        data = _kept([p for p in process if p.summary.rank == rank] or process)
        name = process[0].summary.run
    else:
        live = chosen(live_job.find(target, logdir), rank)
        data = on_demand.fetch(live, "snapshot", "memory_snapshot", {}, timeout)
        name = live.process.summary.run
    on_demand.write(output or Path(f"{name}-memory.pickle"), data)


def _kept(processes: list[recorded.Recorded]) -> bytes:
    for process in processes:
        try:
            parcels = Parcels(process.path, "memory_snapshot")
        except OSError:
            continue
        try:
            kept = [media for media in parcels.next() if media.tag == _AT_ERROR]
        finally:
            parcels.close()
        if kept:
            return gzip.decompress(kept[-1].data)
    raise click.ClickException(f"{processes[0].summary.run} has no snapshot of an out-of-memory error")
