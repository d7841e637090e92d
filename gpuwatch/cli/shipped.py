"""The files that gpuwatch ships beside its code, and writing them out for other programs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import click

import gpuwatch


def address(ctx: click.Context, param: click.Parameter, value: str) -> str:  # noqa: ARG001  # click's signature
    """For options that take a URL, which goes into YAML as it is."""
    if value and not re.fullmatch(r"""https?://[^\s"'\\#]+""", value):
        raise click.BadParameter(f"{value!r} is not an address such as https://host/path")
    return value


def files(folder: str, pattern: str = "*") -> dict[str, str]:
    """Name -> text of the shipped files of `folder` ("dashboards/grafana"), from the wheel or from the checkout."""
    package = Path(gpuwatch.__file__).parent
    for root in (package / "shipped", package.parent):
        if (root / folder).is_dir():
            return {path.name: path.read_text(encoding="utf-8") for path in sorted((root / folder).glob(pattern))}
    raise click.ClickException(f"this installation of gpuwatch lacks {folder}: install it again")


def write(folder: Path, contents: Mapping[str, str], *, force: bool) -> None:
    """Write each text to its path below `folder` and say so. Nothing is written when a file there is somebody's own."""
    targets = {folder / name: text for name, text in contents.items()}
    try:
        own = [path for path, text in targets.items() if path.exists() and path.read_text(encoding="utf-8") != text]
        if own and not force:
            names = ", ".join(str(path) for path in own)
            raise click.ClickException(f"nothing was written: {names} would be replaced by other text; --force replaces")
        for path, text in targets.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            click.echo(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds a file that is not text"
        raise click.ClickException(f"cannot write to {folder}: {reason}") from None
