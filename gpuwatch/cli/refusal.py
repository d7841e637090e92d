"""Errors of the command line as one sentence on standard error; what is wrong stands there alone, without a block of usage."""

from __future__ import annotations

import click
from click.exceptions import NoArgsIsHelpError


def show(error: click.ClickException) -> None:
    """Print what is wrong, and for a command line that is not understood where its use is shown."""
    if isinstance(error, NoArgsIsHelpError):  # a group without a subcommand: what there is to choose from
        click.echo(error.format_message(), err=True)
        return
    click.echo(f"Error: {error.format_message()}{_where_to_look(error)}", err=True)


def _where_to_look(error: click.ClickException) -> str:
    """A pointer behind click's own complaints; ours say themselves what to do."""
    path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx is not None else ""
    is_bare = isinstance(error, click.MissingParameter) or "extra argument" in error.format_message()
    return f" {path} --help shows an example." if path and is_bare else ""
