"""`gpuwatch ps`: which Python processes train here, and whether the hooks can go in."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from gpuwatch.attach import launchers, preflight
from gpuwatch.attach.process import Process, python_processes
from gpuwatch.cli.targets import trains
from gpuwatch.cli.terminal import dim, paint


@click.command(short_help="List Python processes: which train, which can be attached to.")
@click.option("--all", "everything", is_flag=True, help="Also Python processes without torch.")
@click.option("--json", "as_json", is_flag=True, help="Print an array of {pid, uid, title, role, rank, hooks, findings, ...}.")
def command(everything: bool, as_json: bool) -> None:
    """List the Python processes on this node: what trains, what is watched, what can be attached to, and if not, why.

    ROLE: training; launcher (starts those that train: give its PID to `attach --tree`); worker (of a DataLoader); python (no
    torch). HOOKS: watched (they record), or how to get them in.

    \b
    Example:
      gpuwatch ps --json | jq '.[] | select(.role == "training").pid'
    """
    rows = [_row(process) for process in python_processes() if everything or process.torch or process.launcher]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        hint = "" if everything else "; --all lists Python processes without torch too"
        click.echo(f"no process with torch is visible to you here{hint}")
        return
    width = max(5, *(len(str(row["title"])) for row in rows))
    click.echo(dim(f"{'PID':>8}  {'PYTHON':<7} {'ROLE':<9} {'RANK':>4}  {'WHAT':<{width}}  HOOKS"))
    for row in rows:
        line = f"{row['pid']:>8}  {row['python']:<7} {row['role']:<9} {row['rank'] or '-':>4}  {row['title']:<{width}}  "
        click.echo(line + _hooks(row))


def _row(process: Process) -> dict[str, object]:
    findings = preflight.check(process)
    fatal = [finding for finding in findings if finding.fatal]
    watched = _is_watched(process.pid)
    return {
        "pid": process.pid,
        "uid": process.uid,
        "title": process.title,
        "python": f"{process.python[0]}.{process.python[1]}{'t' if process.free_threaded else ''}" if process.python else "?",
        "role": _role(process),
        "rank": process.ranks.get("RANK", ""),
        "cuda": process.cuda,
        "hooks": "attached" if watched else "carried" if process.hooked else "none",
        "attachable": not fatal,
        "findings": [{"code": f.code, "sentence": f.sentence, "fix": f.fix} for f in findings],
    }


def _role(process: Process) -> str:
    if launchers.starts_ranks(process):
        return "launcher"
    if not process.torch:
        return "python"
    return "training" if trains(process) else "worker"


def _is_watched(pid: int) -> bool:
    """The hooks record: their ring is open in it."""
    try:
        descriptors = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return False
    return any(target.startswith("/memfd:gpuwatch-ring") for target in descriptors) and Path(f"/proc/{pid}").exists()


def _hooks(row: dict[str, object]) -> str:
    if row["hooks"] == "attached":
        return paint("watched", "green")
    if row["hooks"] == "carried":
        return "started under gpuwatch run"
    findings = row["findings"]
    assert isinstance(findings, list)
    if row["attachable"]:
        note = f" ({findings[0]['sentence']})" if findings else ""
        return f"none; gpuwatch attach {row['pid']}{note}"
    return dim(f"none: {findings[0]['sentence']}; {findings[0]['fix']}")
