"""`gpuwatch run`: any training command, unchanged, with the hooks in it and in its children."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import click
from click.shell_completion import CompletionItem

from gpuwatch import announcement, paths
from gpuwatch.cli import closing, experiments, range_test, recorded
from gpuwatch.cli.closing import Answer
from gpuwatch.cli.injection import injected_environment, program_name, why_unseen
from gpuwatch.cli.job import CannotStartError, Job, end_like
from gpuwatch.cli.private_daemon import DaemonFailedError, PrivateDaemon, user_environment
from gpuwatch.state.directories import reduce_name

if TYPE_CHECKING:
    from collections.abc import Callable


class Options(NamedTuple):
    command: tuple[str, ...]
    name: str
    logdir: Path | None
    every: int | None
    quiet: bool
    asked: Mapping[str, str] = MappingProxyType({})  # further settings for the hooks: NAME -> GPUWATCH_NAME


@click.command(
    short_help="Start a training command with the hooks in it.",
    context_settings={"allow_interspersed_args": False},
)
@click.option("--name", metavar="N", help="What the run is called; its program and the time, when not given.")
@click.option("--logdir", type=click.Path(path_type=Path), metavar="DIR", help="Record here, with a daemon for this run alone.")
@click.option("--every", type=click.IntRange(1, 1_000_000), metavar="K", help="Statistics at each K-th step.")
@click.option("--lr-find", is_flag=True, help="Begin with a learning-rate range test, then train as if it had not been.")
@click.option("--amp-probe", is_flag=True, help="Measure mixed precision early in the run (gpuwatch probe amp --help).")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing about the run on standard error.")
@click.argument(
    "command_line",
    nargs=-1,
    required=True,
    type=click.UNPROCESSED,
    metavar="-- CMD ...",
    shell_complete=lambda _ctx, _param, incomplete: [CompletionItem(incomplete, type="file")],
)
def command(
    *,
    name: str | None,
    logdir: Path | None,
    every: int | None,
    lr_find: bool,
    amp_probe: bool,
    quiet: bool,
    command_line: tuple[str, ...],
) -> None:
    """Start CMD with the hooks in it and in the Python processes that it starts.

    The command is not changed: standard input, output, terminal, signals and exit status are its own. What gpuwatch says goes
    to standard error. With --logdir, or where no daemon answers, a daemon is started for this run and ended with it.

    The exit status is the command's; 127 when it was not found and 126 when it could not be executed, as in a shell.

    \b
    Examples:
      gpuwatch run -- python train.py --epochs 3
      gpuwatch run --name sweep-1 -- torchrun --nproc-per-node 8 train.py
    """
    named = recorded.name_given(name) or reduce_name(f"{program_name(command_line)}-{time.strftime('%Y%m%d-%H%M%S')}")
    asked = {"lr_find": range_test.asked(goes_on=True)} if lr_find else {}
    if amp_probe:  # behind a range test's steps
        asked["amp_probe"] = json.dumps({"first_step": 50 + (range_test.STEPS if lr_find else 0)})
    end_like(supervise(Options(command_line, named, logdir, every, quiet, asked)))


def supervise(options: Options, opened: Callable[[str], object] | None = None) -> int:
    """Run the command to its end; its exit code, or minus the signal that killed it. Raises click errors before it starts.

    `opened` is called with the URL of the private daemon's page once it can be read.
    """
    token = secrets.token_hex(8)
    logdir, daemon, socket_path = _daemon_for(options, token)
    try:
        settings = {"socket": str(socket_path), "run": options.name, "token": token}
        if options.every is not None:
            settings["hooks_every"] = str(options.every)
        settings |= options.asked
        environ = injected_environment(user_environment(), **settings)
        _announce(options, logdir, daemon)
        if opened is not None and daemon is not None and daemon.metrics_url:
            opened(daemon.metrics_url.removesuffix("metrics"))
        try:
            job = Job(options.command, environ)
        except CannotStartError as error:
            click.echo(f"gpuwatch: {error}", err=True)
            return error.code
        try:
            status = job.wait(lambda: _say(options, daemon.look_after() if daemon else ""))
        finally:
            job.release()
        answer = closing.ask(socket_path, token, job.pid, status)
        if daemon is None and answer is not None and answer.runs:
            answer = closing.settle(socket_path, token, job.pid, status)
    finally:
        warning = daemon.end() if daemon else ""
    _say(options, warning)
    told = closing.completed(answer, closing.on_disk(token, logdir))
    _report(options, logdir, told, environ, status, token)
    return status


def _daemon_for(options: Options, token: str) -> tuple[Path, PrivateDaemon | None, Path]:
    """The log directory, the private daemon if the run needs one, and the socket to call."""
    environ = user_environment()
    recorded.settings()  # what the daemon would refuse is wrong use, before anything is started
    shared = paths.socket_to_call(environ=environ)
    if options.logdir is None and paths.answers(shared):
        announced = announcement.read(shared)
        return Path(announced.logdir) if announced else recorded.log_directory(None), None, shared
    logdir = recorded.log_directory(options.logdir)
    try:
        logdir.mkdir(parents=True, exist_ok=True)
        if not os.access(logdir, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise click.ClickException(f"{logdir} cannot be written ({error.strerror}); choose another with --logdir") from None
    try:
        daemon = PrivateDaemon(logdir, token[:8], environ)
        daemon.start()
    except (DaemonFailedError, OSError) as error:
        raise click.ClickException(f"the daemon for this run did not start, and so nothing was: {error}") from None
    return logdir, daemon, daemon.socket_path


def _announce(options: Options, logdir: Path, daemon: PrivateDaemon | None) -> None:
    where = f", metrics at {daemon.metrics_url}" if daemon and daemon.metrics_url else ""
    other = "" if daemon is None or daemon.has_default_port else " (port 9877 is taken)"
    _say(options, f"recording as {options.name} in {logdir}{where}{other}")


def _report(options: Options, logdir: Path, answer: Answer, environ: dict[str, str], status: int, token: str) -> None:
    if options.quiet:
        return
    if any(process.step for process in answer.runs):
        *told, where = closing.sentences(answer, logdir, status)
        for sentence in (*told, *experiments.sentences(options.asked, token, logdir), where):
            _say(options, sentence)
    elif answer.refused:
        _say(options, f"NOTHING WAS RECORDED: {answer.refused}")
    elif not os.access(logdir, os.R_OK | os.X_OK):
        _say(options, f"recorded by this node's daemon in {logdir}, which you may not read")
    else:
        _say(options, f"no training step was seen: {why_unseen(options.command, environ)}")


def _say(options: Options, sentence: str) -> None:
    if not sentence or options.quiet:
        return
    text = f"gpuwatch: {sentence}"
    if sys.stderr.isatty():
        width = max(40, shutil.get_terminal_size().columns)
        text = textwrap.fill(text, width, subsequent_indent=" " * 10, break_long_words=False, break_on_hyphens=False)
    with contextlib.suppress(OSError):  # nobody reads our standard error any more: the command's exit status matters more
        click.echo(text, err=True)
