"""`gpuwatch daemon`: the sidecar in the foreground, for a terminal, for systemd, or for `gpuwatch run`."""

from __future__ import annotations

from pathlib import Path

import click

from gpuwatch import config as configuration
from gpuwatch.config import Config, ConfigError


@click.command(short_help="Run the sidecar in the foreground.")
@click.option("--config", "file", type=click.Path(path_type=Path), metavar="F", help="Read settings from this TOML file.")
@click.option("--logdir", metavar="D", help="Record runs below this folder.  [default: runs]")
@click.option("--listen", metavar="ADDR:PORT", help="Serve metrics here.  [default: 127.0.0.1:9877]")
@click.option("--socket", metavar="P", help="Listen for training processes at this path.")
def command(file: Path | None, logdir: str | None, listen: str | None, socket: str | None) -> None:
    r"""Take in what training processes record, sample the GPUs and the host, judge, and export.

    It stays in the foreground and logs to standard error. SIGTERM or Ctrl-C drains and flushes, then ends it; SIGHUP reads
    [hooks] of the configuration again.

    \b
    Example:
      gpuwatch daemon --logdir /data/runs --listen 127.0.0.1:9877
    """
    from gpuwatch.daemon import Daemon
    from gpuwatch.detectors.registry import DEFAULTS
    from gpuwatch.logs import set_up
    from gpuwatch.surroundings import StartError

    flags = {"daemon.logdir": logdir, "daemon.listen": listen, "daemon.socket": socket}

    def load() -> Config:
        return configuration.load(file, flags=flags, rules=DEFAULTS)

    try:
        settings = load()
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    set_up(settings.daemon.log_format, settings.daemon.log_level)
    try:
        daemon = Daemon(settings, load)
    except StartError as error:
        raise click.ClickException(str(error)) from None
    raise SystemExit(daemon.run())
