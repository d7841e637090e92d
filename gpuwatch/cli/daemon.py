"""`gpuwatch daemon`: the sidecar, in the foreground."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from gpuwatch import config, paths
from gpuwatch.config import Config, ConfigError
from gpuwatch.detectors import registry
from gpuwatch.samplers.nvml_child import NvmlChild
from gpuwatch.service import logs


@click.command(short_help="Run the sidecar in the foreground.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="FILE", help="Read this gpuwatch.toml.")
@click.option("--logdir", type=click.Path(), metavar="DIR", help="Record runs below this folder [default: runs].")
@click.option("--listen", metavar="ADDR:PORT", help="Serve metrics here [default: 127.0.0.1:9877]; port 0 takes a free one.")
@click.option("--socket", type=click.Path(), metavar="PATH", help="Hear training processes at this socket.")
def command(config_file: Path | None, logdir: str | None, listen: str | None, socket: str | None) -> None:
    """Hear the training processes of this node, record, judge and export; until SIGTERM or Ctrl-C.

    Settings come from ./gpuwatch.toml or ~/.config/gpuwatch/gpuwatch.toml (or --config), then from GPUWATCH_SECTION_KEY in
    the environment, then from these options. SIGHUP reads [hooks] again. The log goes to standard error.

    \b
    Example:
      gpuwatch daemon --logdir /data/runs --listen 127.0.0.1:9877
    """
    flags = {"daemon.logdir": logdir, "daemon.listen": listen, "daemon.socket": socket}

    def load() -> Config:
        return config.load(config_file, flags=flags, rules=registry.DEFAULTS)

    try:
        settings = load()
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    _check_folder_of_socket(settings.daemon.socket)
    try:
        logs.set_up(settings.daemon.log_format, settings.daemon.log_level, settings.daemon.log_file)
    except OSError as error:
        raise click.ClickException(f"cannot log to {settings.daemon.log_file}: {error.strerror}") from None

    # The sampler takes 0.2 s to start, and what follows here as long: they start side by side.
    sampler = NvmlChild(settings.sampling, time.monotonic_ns(), {}, skip=set(), only=None) if settings.sampling.gpus else None

    from gpuwatch.daemon import Daemon
    from gpuwatch.service.preconditions import StartError

    try:
        daemon = Daemon(settings, reload=load, sampler=sampler)
    except StartError as error:
        if sampler is not None:
            sampler.close()
        raise click.ClickException(str(error)) from None
    raise SystemExit(daemon.run())


def _check_folder_of_socket(configured: str) -> None:
    """A place that somebody named must be there: a mistyped one would be made, by root anywhere."""
    told = configured or os.environ.get("GPUWATCH_SOCKET", "")
    folder = paths.socket_to_bind(configured).parent
    if told and not folder.is_dir():
        raise click.ClickException(f"cannot listen at {told}: the folder {folder} is not there; make it first, for you alone")
