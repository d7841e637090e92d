"""Reads a recorded run whole for a command, with a progress line when that takes long."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from gpuwatch.history import past

if TYPE_CHECKING:
    from gpuwatch.cli.recorded import Recorded

#: A journal of 1 GiB takes half a minute; what takes less than this needs no progress line.
_QUIET_SECONDS = 1.0


def past_of(process: Recorded) -> past.Past:
    """The recorded past of one process. Raises a click error when its journal is not there or not for us."""
    began = time.monotonic()
    shown = False

    def tell(left_bytes: int) -> None:
        nonlocal shown
        if sys.stderr.isatty() and time.monotonic() - began > _QUIET_SECONDS:
            shown = True
            click.echo(
                f"\r\x1b[Kreading {process.summary.directory}: {left_bytes / (1 << 20):,.0f} MiB to go", nl=False, err=True
            )

    try:
        found = past.read(process.path, tell, ended=process.status != "live")
    except OSError as error:
        sentence = f"the journal of {process.summary.directory} in {process.path} cannot be read ({error.strerror})"
        raise click.ClickException(sentence) from None
    finally:
        if shown:
            click.echo("\r\x1b[K", nl=False, err=True)
    if found.lost_bytes:
        click.echo(f"gpuwatch: {found.lost_bytes:,} damaged bytes of the journal were passed over", err=True)
    return found
