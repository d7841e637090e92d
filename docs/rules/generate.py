"""Writes the pages of this folder from the rules' own docstrings: `python docs/rules/generate.py`."""

from __future__ import annotations

from pathlib import Path

from gpuwatch.detectors import pages
from gpuwatch.detectors.registry import RULES


def contents() -> dict[str, str]:
    """File name -> what it must hold."""
    return {"README.md": pages.index(), **{f"{rule.name}.md": pages.page(rule) for rule in RULES}}


if __name__ == "__main__":
    for name, text in contents().items():
        (Path(__file__).parent / name).write_text(text, encoding="utf-8")
