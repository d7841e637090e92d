"""`gpuwatch dashboards export`: the Grafana dashboards, with what Grafana needs to load them by itself."""

from __future__ import annotations

import json
from pathlib import Path

import click

from gpuwatch.cli import shipped

_FOLDER = "dashboards/gpuwatch"


@click.group(short_help="Write the Grafana dashboards to a folder.")
def command() -> None:
    """The Grafana dashboards: the fleet with its GPUs, one run, its layers.

    \b
    Example:
      gpuwatch dashboards export /etc/grafana
    """


@command.command(short_help="Write the dashboards and their provisioning.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR")
@click.option(
    "--prometheus",
    default="http://127.0.0.1:9090",
    show_default=True,
    metavar="URL",
    callback=shipped.address,
    help="Where Grafana queries.",
)
@click.option("--force", is_flag=True, help="Replace files that are there and differ.")
def export(folder: Path, prometheus: str, force: bool) -> None:
    """Write DIR/dashboards/gpuwatch/*.json and DIR/provisioning/ for Grafana 11.6 or newer.

    With /etc/grafana a stock Grafana loads them when it starts. A dashboard can also be imported by hand: it asks for its data
    source.

    \b
    Example:
      gpuwatch dashboards export /etc/grafana --prometheus http://prometheus:9090
    """
    contents = {f"{_FOLDER}/{name}": text for name, text in shipped.files("dashboards/grafana", "*.json").items()}
    for kind, shipped_value, wanted in (
        ("dashboards", f"/etc/grafana/{_FOLDER}", str((folder / _FOLDER).absolute())),
        ("datasources", "http://127.0.0.1:9090", prometheus),
    ):
        for name, text in shipped.files(f"dashboards/provisioning/grafana/{kind}").items():
            value = (
                wanted if wanted == shipped_value else json.dumps(wanted)
            )  # a JSON string is a YAML string, whatever is in it
            contents[f"provisioning/{kind}/{name}"] = text.replace(f": {shipped_value}\n", f": {value}\n")
    shipped.write(folder, contents, force=force)
