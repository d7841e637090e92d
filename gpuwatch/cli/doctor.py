"""`gpuwatch doctor`: what works on this machine, what does not, and what to do about it."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

import click

import gpuwatch
from gpuwatch.cli import checks
from gpuwatch.cli.terminal import paint

_MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "fail": ("FAIL", "red")}


@click.command(short_help="Check what works here and how to fix what does not.")
@click.option(
    "--logdir", type=click.Path(path_type=Path), metavar="DIR", default=Path("runs"), show_default=True, help="Where runs go."
)
@click.option("--json", "as_json", is_flag=True, help="Print an array of {check, state, detail, fix}.")
def command(logdir: Path, as_json: bool) -> None:
    """Check what works here: driver, kernel, permissions, socket, port, torch, Prometheus, TensorBoard.

    A note limits what gpuwatch can show; a FAIL means that `gpuwatch run` would not record. Exit 1 when there is a FAIL.

    \b
    Example:
      gpuwatch doctor --json | jq '.[] | select(.state != "ok")'
    """
    results = [check(logdir) for check in checks.ALL]
    if as_json:
        rows = [{"check": r.check, "state": r.state, "detail": r.detail, "fix": r.fix} for r in results]
        click.echo(json.dumps(rows, indent=2))
    else:
        click.echo(
            f"gpuwatch {gpuwatch.__version__}, Python {platform.python_version()} ({sys.executable}), "
            f"{platform.system()} {platform.release()}, user {os.geteuid()}"
        )
        for result in results:
            mark, colour = _MARKS[result.state]
            click.echo(f"{paint(f'{mark:>5}', colour)}  {result.check:<12} {result.detail}")
            if result.fix:
                click.echo(f"{'':>20}{result.fix}")
    if any(result.state == "fail" for result in results):
        raise SystemExit(1)
