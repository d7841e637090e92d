"""`gpuwatch detach`: take the hooks out of a running job without a trace."""

from __future__ import annotations

import click

from gpuwatch.attach import attacher
from gpuwatch.attach.process import python_processes
from gpuwatch.cli.targets import act, chosen, show, trains

_WORDS = {"detached": "detached, nothing of ours is left in it", "absent": "no hooks were in it"}


@click.command(short_help="Take the hooks out of a running job.")
@click.argument("pids", nargs=-1, type=click.IntRange(1), metavar="PID...")
@click.option("--all", "everything", is_flag=True, help="Every training process here that lets you.")
@click.option("--tree", type=click.IntRange(1), metavar="PID", help="All ranks below a launcher.")
@click.option("--method", type=click.Choice(attacher.METHODS), default="auto", show_default=True, help="Which way in.")
@click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=10.0, show_default=True, metavar="S", help="Seconds to wait at most."
)
@click.option("--json", "as_json", is_flag=True, help="Print an array of {pid, answer, method, sentence, fix, ...}.")
def command(pids: tuple[int, ...], everything: bool, tree: int | None, method: str, timeout: float, as_json: bool) -> None:
    """Take the hooks out: patches, thread, descriptors, memory and modules; the job goes on as if they had never been there.

    \b
    Example:
      gpuwatch detach 4711
    """
    wanted = [p.pid for p in python_processes() if trains(p)] if everything else chosen(pids, everything, tree)
    show(act(wanted, "end", {}, method, timeout), _WORDS, as_json)
