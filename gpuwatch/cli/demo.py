"""`gpuwatch demo`: a small real training, watched, broken half-way, and what was found."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import signal
import sys
import time
import webbrowser
from pathlib import Path

import click

from gpuwatch.cli import card, recorded, run
from gpuwatch.cli.job import end_like

#: What Adam at 1e-3 does not survive, as a mistyped exponent gives it.
_BREAK_BY = 300.0
_SETTLING_SECONDS = 6.0


@click.command(short_help="Train a small model under gpuwatch and show what it finds.")
@click.option(
    "--seconds", type=click.FloatRange(_SETTLING_SECONDS, 3600), default=20.0, show_default=True, help="How long to train."
)
@click.option("--no-browser", is_flag=True, help="Do not open the daemon's page in a browser.")
@click.option(
    "--logdir", type=click.Path(path_type=Path), metavar="DIR", default=Path("runs"), show_default=True, help="Record here."
)
def command(seconds: float, no_browser: bool, logdir: Path) -> None:
    """Train a small network on handwritten digits under `gpuwatch run`, with a daemon of its own.

    Half-way somebody multiplies the learning rate by 300. The training script knows nothing of gpuwatch; what it found
    is printed at the end, and the run stays for `gpuwatch status` and TensorBoard.

    \b
    Example:
      gpuwatch demo --seconds 30
    """
    for module, package in (("torch", "torch"), ("sklearn", "scikit-learn")):
        if importlib.util.find_spec(module) is None:
            raise click.ClickException(
                f"the demo trains with {package}, which is not installed: pip install torch scikit-learn"
            )
    name = f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    script = Path(__file__).resolve().parents[1] / "demo" / "digits.py"
    training = (sys.executable, str(script), "--seconds", str(seconds), "--break-by", str(_BREAK_BY))
    page = None if no_browser or not _has_browser() else webbrowser.open
    status = run.supervise(run.Options(training, name, logdir, every=None, quiet=False), opened=page)
    if status:
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"failed with exit status {status}"
        click.echo(f"Error: the training {how}", err=True)
        end_like(status)
    ranks = recorded.find(str(logdir / name), logdir)
    click.echo()
    for line in card.lines(ranks):
        click.echo(line)
    click.echo(f"\nThe learning rate was multiplied by {_BREAK_BY:g} half-way. Where to look now:")
    folder, ours = shlex.quote(str(logdir)), _beside_us("gpuwatch")
    for what, how in (
        ("this again", f"{ours} status {name} --logdir {folder}"),
        ("all runs", f"{ours} runs --logdir {folder}"),
        ("curves, histograms", f"{_beside_us('tensorboard')} --logdir {folder}"),
        ("files", str(ranks[0].path)),
        ("your own training", f"{ours} run -- python train.py"),
    ):
        click.echo(f"  {what:<20}{how}")
    if not any(rank.summary.findings for rank in ranks):
        click.echo("\nToo few steps were trained for the fault to be found: give it longer with --seconds.", err=True)


def _has_browser() -> bool:
    """Whether a window can be opened for the person who sits there: not from CI, a container or a remote shell."""
    return sys.stderr.isatty() and bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _beside_us(program: str) -> str:
    """`program` as it can be typed: by name when it is on PATH, else by its path beside our interpreter."""
    beside = Path(sys.executable).with_name(program)
    return program if shutil.which(program) or not beside.exists() else os.path.relpath(beside)
