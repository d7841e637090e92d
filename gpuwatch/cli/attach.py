"""`gpuwatch attach`: put the hooks into a job that already runs."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import click

from gpuwatch import config, paths
from gpuwatch.attach import attacher
from gpuwatch.attach.attacher import Outcome
from gpuwatch.cli import recorded, targets
from gpuwatch.cli.private_daemon import DaemonFailedError, PrivateDaemon, user_environment
from gpuwatch.cli.targets import act, chosen, show, until_interrupted, wait_for_torch

_TIMEOUT_SECONDS, _PATIENCE_SECONDS = 10.0, 600.0
_WORDS = {"installed": "attached", "already": "hooks are in it already"}


@click.command(short_help="Put the hooks into a job that already runs.")
@click.argument("pids", nargs=-1, type=click.IntRange(1), metavar="PID...")
@click.option("--all", "everything", is_flag=True, help="Every training process here that lets you.")
@click.option("--tree", type=click.IntRange(1), metavar="PID", help="All ranks below a launcher (torchrun ...).")
@click.option("--every", type=click.IntRange(1, 1_000_000), metavar="K", help="Statistics at each K-th step.")
@click.option("--duration", type=click.FloatRange(min=0.1), metavar="S", help="Detach again after S seconds.")
@click.option("--name", metavar="N", help="What the run is called; the program and the time, when not given.")
@click.option(
    "--logdir", type=click.Path(path_type=Path), metavar="DIR", help="Record here, with a daemon for this attach alone."
)
@click.option("--method", type=click.Choice(attacher.METHODS), default="auto", show_default=True, help="Which way in.")
@click.option(
    "--timeout", type=click.FloatRange(min=0.1), metavar="S", help="Seconds to wait at most.  [default: 10; with --wait: 600]"
)
@click.option(
    "--wait", is_flag=True, help="Wait for what is not ready: torch to be loaded, the main thread to come back to Python."
)
@click.option("--dry-run", is_flag=True, help="Only say what speaks for and against it; touch nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print an array of {pid, answer, method, sentence, fix, ...}.")
@click.option("--quiet", "-q", is_flag=True, help="No line on the job's standard error.")
def command(pids: tuple[int, ...], everything: bool, tree: int | None, dry_run: bool, wait: bool, **given: Any) -> None:
    """Put the hooks into training processes that run already: no restart, nothing to install in their environment.

    Give PIDs, or --tree, or --all (`gpuwatch ps` lists what trains here). The main thread is stopped for about half a
    millisecond; the interpreter itself runs our text between two of its bytecodes. With a daemon running, the command
    returns at once. Without one (or with --logdir) it starts one, stays in the foreground, and on Ctrl-C, or after
    --duration, takes the hooks out again and ends it.

    \b
    Examples:
      gpuwatch attach 4711
      gpuwatch attach --tree $(pgrep -o torchrun) --duration 60
    """
    wanted = chosen(pids, everything, tree)
    given["timeout"] = given["timeout"] or (_PATIENCE_SECONDS if wait else _TIMEOUT_SECONDS)
    if wait:
        wait_for_torch(wanted, given["timeout"])
    if dry_run:
        show([_look(pid, given["method"]) for pid in wanted], {"possible": "can be attached to"}, given["as_json"])
        return
    daemon, socket_path = _daemon(given["logdir"])
    try:
        options = {
            "socket": str(socket_path),
            "run": given["name"],
            "every": given["every"],
            "detach_after_seconds": _hook_settings().detach_after_seconds,
            "told": None if given["quiet"] else f"hooks attached by uid {os.getuid()}; `gpuwatch detach PID` takes them out",
        }
        outcomes = act(wanted, "begin", options, given["method"], given["timeout"])
        attached = [outcome.pid for outcome in outcomes if outcome.good or outcome.answer == "queued"]
        if daemon is None and given["duration"] is None:
            show(outcomes, _WORDS, given["as_json"])
            return
        _stay(daemon, outcomes, attached, given)
    finally:
        if daemon is not None:
            daemon.end()


def _stay(daemon: PrivateDaemon | None, outcomes: list[Outcome], attached: list[int], given: dict[str, Any]) -> None:
    """Watch until told to stop, then leave as if we had never been there."""
    try:
        show(outcomes, _WORDS, given["as_json"])
    except SystemExit:
        if not attached:
            raise
    if daemon is not None:
        metrics = f", metrics at {daemon.metrics_url}" if daemon.metrics_url else ""
        metrics += "" if daemon.has_default_port else " (port 9877 is taken)"
        click.echo(f"gpuwatch: recording in {daemon.logdir}{metrics}; Ctrl-C detaches and ends", err=True)
    until_interrupted(given["duration"], lambda: targets.alive(attached))
    left = [pid for pid in attached if targets.alive([pid])]
    for outcome in act(left, "end", {}, given["method"], given["timeout"]) if left else []:
        word = "detached" if outcome.good else f"{outcome.answer}: {outcome.sentence}; {outcome.fix}"
        click.echo(f"gpuwatch: {outcome.pid} {outcome.title}: {word}", err=True)


def _look(pid: int, method: str) -> Outcome:
    process, refusal = attacher.look(pid)
    if refusal is not None or process is None:
        assert refusal is not None
        return refusal
    return Outcome(pid=pid, title=process.title, answer="possible", method=attacher.choose(process, method))


def _hook_settings() -> config.Hooks:
    try:
        return config.load().hooks
    except config.ConfigError as error:
        raise click.UsageError(str(error)) from None


def _daemon(logdir: Path | None) -> tuple[PrivateDaemon | None, Path]:
    """The daemon that answers, or one of our own."""
    environ = user_environment()
    shared = paths.socket_to_call(environ=environ)
    if logdir is None and paths.answers(shared):
        return None, shared
    folder = recorded.log_directory(logdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        daemon = PrivateDaemon(folder, secrets.token_hex(4), environ)
        daemon.start()
    except (DaemonFailedError, OSError) as error:
        raise click.ClickException(f"no daemon answers, and none could be started: {error}") from None
    return daemon, daemon.socket_path
