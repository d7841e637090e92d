"""The command line. Each subcommand is one module, imported only when it is called: `gpuwatch --help` stays quick."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

import click

import gpuwatch

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What somebody wants -> its subcommands -> what the overview says of each; module gpuwatch.cli.NAME has it as `command`.
SECTIONS = {
    "Record a training": {
        "demo": "Train a small model under gpuwatch and show what it finds.",
        "run": "Start a training command with the hooks in it.",
        "ps": "List Python processes: which train, which can be attached to.",
        "attach": "Put the hooks into a job that already runs.",
        "detach": "Take the hooks out of a running job.",
    },
    "Look at it": {
        "status": "Show the health of one run.",
        "runs": "List recorded and live runs.",
        "alerts": "List findings, or follow them as they come.",
        "explain": "Say what a rule means and what to do.",
        "top": "Show GPUs, processes and training jobs live.",
    },
    "Learn from it": {
        "report": "Write one page about a run, with pictures.",
        "compare": "Compare runs: accuracy and its gap, speed, memory.",
        "advise": "Say what would speed this run up next.",
        "lr-find": "Find a learning rate by a range test in your own loop.",
        "probe": "Measure mixed precision in the running job.",
    },
    "Look inside while it runs": {
        "trace": "Take a profiler trace of a running job.",
        "snapshot": "Write a snapshot of the CUDA allocator.",
        "stacks": "Print the Python stacks of a job, by py-spy.",
    },
    "Look after a node": {
        "doctor": "Check what works here and how to fix what does not.",
        "daemon": "Run the sidecar in the foreground.",
        "pause": "Stop sampling the GPUs; --release lets go of the driver.",
        "resume": "Sample the GPUs again after a pause.",
        "dashboards": "Write the Grafana dashboards to a folder.",
        "rules": "Write the Prometheus rules to a folder.",
    },
}
COMMANDS = {name: summary for commands in SECTIONS.values() for name, summary in commands.items()}

_EPILOG = """\b
Completion, for instance in ~/.bashrc (zsh_source and fish_source likewise):
  eval "$(_GPUWATCH_COMPLETE=bash_source gpuwatch)"
"""


class _Commands(click.Group):
    """A group that knows its subcommands by name and imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"gpuwatch.cli.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "gpuwatch --help lists them."
            raise click.UsageError(f"There is no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        width = max(map(len, COMMANDS))
        for heading, commands in SECTIONS.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), summary) for name, summary in commands.items()])


@click.command(cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(gpuwatch.__version__, package_name="gpuwatchd", prog_name="gpuwatch")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Watch PyTorch training: light hooks in the job, judgement in a daemon beside it.

    \b
    gpuwatch demo                       see it at work
    gpuwatch run -- python train.py     watch your own training
    gpuwatch status                     how the newest run is doing
    """
    from gpuwatch.cli.terminal import coloured

    ctx.color = coloured()


def main(arguments: Sequence[str] | None = None) -> None:
    """The `gpuwatch` command. Ends the process: 0 fine, 1 failed, 2 wrong use, 130 by Ctrl-C; `run` ends as its command did."""
    try:
        code = cli.main(args=None if arguments is None else list(arguments), prog_name="gpuwatch", standalone_mode=False)
    except click.ClickException as error:
        from gpuwatch.cli import refusal

        refusal.show(error)
        raise SystemExit(error.exit_code) from None
    except click.Abort:
        raise SystemExit(130) from None
    raise SystemExit(code if isinstance(code, int) else 0)
