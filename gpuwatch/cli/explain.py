"""`gpuwatch explain`: the page of one rule, the same text as docs/rules/RULE.md."""

from __future__ import annotations

import difflib
import json

import click

from gpuwatch.cli.terminal import paint


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001  # click's signature
    from gpuwatch.detectors.registry import BY_NAME

    return [name for name in BY_NAME if name.startswith(incomplete)]


@click.command(short_help="Say what a rule means and what to do.")
@click.argument("rule", required=False, shell_complete=_complete)
@click.option("--json", "as_json", is_flag=True, help="Print an array of {rule, severity, title, page}.")
def command(rule: str | None, as_json: bool) -> None:
    """Say what RULE means, how it is measured against which threshold, and what to do about it; without RULE, list all.

    \b
    Example:
      gpuwatch explain exploding_gradient
    """
    from gpuwatch.detectors import pages
    from gpuwatch.detectors.registry import BY_NAME

    known = BY_NAME if rule is None else {rule: BY_NAME[rule]} if rule in BY_NAME else {}
    if rule is not None and not known:
        close = difflib.get_close_matches(rule, BY_NAME, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "gpuwatch explain lists them"
        raise click.UsageError(f"no rule {rule!r}; {hint}")
    if as_json:
        facts = [
            {"rule": name, "severity": each.severity, "title": pages.title(each), "page": pages.page(each)}
            for name, each in known.items()
        ]
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    elif rule is None:
        width = max(map(len, known))
        for name, each in known.items():
            click.echo(f"{name:<{width}}  {each.severity:<8}  {pages.title(each)}")
    else:
        for line in pages.page(known[rule]).splitlines():
            click.echo(paint(line, "", bold=True) if line.startswith("#") else line)
