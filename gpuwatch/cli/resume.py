"""`gpuwatch resume`: sample the GPUs again after a pause."""

from __future__ import annotations

import click

from gpuwatch.cli import sampler
from gpuwatch.cli.sampler import Sampling


@click.command(short_help="Sample the GPUs again after a pause.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=15.0, show_default=True, help="Seconds to wait for the driver at most."
)
@click.option("--json", "as_json", is_flag=True, help="Print an array of {socket, done, state, message, processes}.")
def command(timeout: float, as_json: bool) -> None:
    """Sample the GPUs again. Waits until they answer, or until it is known why they do not.

    \b
    Example:
      gpuwatch resume
    """
    found = sampler.act("resume", _has_begun, timeout)
    sampler.show(found, _has_begun, as_json=as_json)


def _has_begun(found: Sampling) -> bool:
    """Also on a machine without a driver: that is no fault of the resuming."""
    return found.state in {"sampling", "absent"}
