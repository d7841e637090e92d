"""`gpuwatch stacks`: what every rank of a job is doing now, by py-spy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import click

from gpuwatch.cli import live_job, recorded
from gpuwatch.cli.terminal import paint

_SECONDS = 30.0
_MISSING = "py-spy is not here: pip install py-spy"


@click.command(short_help="Print the Python stacks of a job, by py-spy.")
@click.argument("target", metavar="PID|RUN", shell_complete=recorded.complete)
@click.option("--native", is_flag=True, help="With the frames of C and C++.")
@recorded.logdir_option
@click.option("--json", "as_json", is_flag=True, help="Print an array of {pid, rank, threads}.")
def command(target: str, native: bool, logdir: Path | None, as_json: bool) -> None:
    """Print the stack of every thread of every rank: where a job hangs, or which rank waits for the others.

    The processes stand still for the milliseconds that py-spy reads them. A PID may be any Python process, with hooks or not.

    \b
    Examples:
      gpuwatch stacks digits
      gpuwatch stacks 4711 --native
    """
    py_spy = _py_spy()
    if target.isdigit():
        ranks = [(int(target), 0)]
    else:
        ranks = [(rank.pid, rank.process.summary.rank) for rank in live_job.find(target, logdir)]
    found, failed = [], False
    for pid, rank in ranks:
        result = _dump(py_spy, pid, native=native, as_json=as_json)
        if result.returncode:
            failed = True
            click.echo(f"gpuwatch: process {pid}: {_reason(result.stderr)}", err=True)
        elif as_json:
            found.append({"pid": pid, "rank": rank, "threads": json.loads(result.stdout)})
        else:
            if len(ranks) > 1:
                click.echo(paint(f"rank {rank}", "", bold=True))
            click.echo(result.stdout.rstrip() + "\n")
    if as_json:
        click.echo(json.dumps(found, indent=2))
    if failed:
        raise SystemExit(1)


def _py_spy() -> str:
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise click.ClickException(_MISSING)
    return found


def _dump(py_spy: str, pid: int, *, native: bool, as_json: bool) -> subprocess.CompletedProcess[str]:
    command_line = [py_spy, "dump", "--pid", str(pid), *(["--native"] if native else []), *(["--json"] if as_json else [])]
    try:
        return subprocess.run(
            command_line, capture_output=True, encoding="utf-8", errors="replace", timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command_line, 1, "", f"py-spy did not finish in {_SECONDS:g} s")


def _reason(said: str) -> str:
    """py-spy's error, and what to do about the commonest one."""
    lines = [line.strip() for line in said.strip().splitlines() if line.strip()]
    reason = lines[0].removeprefix("Error: ") if lines else "py-spy failed without a word"
    if "ermission" in said:
        return f"{reason}; reading another process needs its user's rights and a ptrace_scope that lets you, or sudo"
    return reason
