"""`gpuwatch rules export`: the Prometheus alert and recording rules, and the documents that their alerts refer to."""

from __future__ import annotations

from pathlib import Path

import click

from gpuwatch.cli import shipped


@click.group(short_help="Write the Prometheus rules to a folder.")
def command() -> None:
    """The Prometheus rules: findings by severity, and what only somebody who sees the whole fleet can tell.

    \b
    Example:
      gpuwatch rules export /etc/prometheus/gpuwatch
    """


@command.command(short_help="Write the rules and their documents.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR")
@click.option(
    "--docs-url",
    default="",
    metavar="URL",
    callback=shipped.address,
    help="Where the documents can be read: runbook_url begins with it.",
)
@click.option("--force", is_flag=True, help="Replace files that are there and differ.")
def export(folder: Path, docs_url: str, force: bool) -> None:
    """Write DIR/rules/*.yml for Prometheus, DIR/docs/ that the alerts refer to, and examples of both programs' configuration.

    Each alert's runbook_url is a path below DIR, such as docs/alerting.md#gpuwatchdown; with --docs-url it is an address below
    that.

    \b
    Example:
      gpuwatch rules export /etc/prometheus/gpuwatch --docs-url https://wiki.example.org/gpuwatch
    """
    from gpuwatch.detectors import pages
    from gpuwatch.detectors.registry import RULES

    base = f"{docs_url.rstrip('/')}/" if docs_url else ""
    contents = {}
    for name, text in shipped.files("dashboards/rules", "*.yml").items():
        quoted = text.replace('runbook_url: "docs/', f'runbook_url: "{base}docs/')
        contents[f"rules/gpuwatch-{name}"] = quoted.replace("runbook_url: docs/", f"runbook_url: {base}docs/")
    for program in ("prometheus", "alertmanager"):
        for name, text in shipped.files(f"dashboards/provisioning/{program}").items():
            contents[f"examples/{name}"] = text
    contents["docs/alerting.md"] = shipped.files("docs", "alerting.md")["alerting.md"]
    contents |= {f"docs/rules/{rule.name}.md": pages.page(rule) for rule in RULES}
    contents["docs/rules/README.md"] = pages.index()
    shipped.write(folder, contents, force=force)
