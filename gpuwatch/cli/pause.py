"""`gpuwatch pause`: stop sampling the GPUs, and let go of the driver when asked to."""

from __future__ import annotations

import click

from gpuwatch.cli import sampler
from gpuwatch.cli.sampler import Sampling


@click.command(short_help="Stop sampling the GPUs; --release lets go of the driver.")
@click.option("--release", is_flag=True, help="Let go of the driver, so that a GPU can be reset or cut up anew.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=15.0, show_default=True, help="Seconds to wait for the release at most."
)
@click.option("--json", "as_json", is_flag=True, help="Print an array of {socket, done, state, message, processes}.")
def command(release: bool, timeout: float, as_json: bool) -> None:
    """Stop sampling the GPUs until `gpuwatch resume` or the daemon's next start; training is recorded as before.

    With --release no process of the daemon has the driver open once this returns 0: nvidia-smi --gpu-reset, MIG changes and a
    driver update are not held up by gpuwatch any more. Only root and the daemon's own user may.

    \b
    Example:
      gpuwatch pause --release && nvidia-smi --gpu-reset -i 0; gpuwatch resume
    """

    def is_complete(found: Sampling) -> bool:
        return found.state == "paused" and not (release and found.processes)

    found = sampler.act("pause", is_complete, timeout, release=release)
    sampler.show(found, is_complete, as_json=as_json)
