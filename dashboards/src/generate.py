"""Writes dashboards/grafana/*.json: `python dashboards/src/generate.py [FOLDER]`."""

from __future__ import annotations

import sys
from pathlib import Path

import fleet
import layers
import run

FOLDER = Path(__file__).resolve().parents[1] / "grafana"


def contents() -> dict[str, str]:
    """File name -> what it must hold."""
    boards = {"fleet": fleet.build(), "run": run.build(), "layers": layers.build()}
    return {f"gpuwatch-{name}.json": board.text() for name, board in boards.items()}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for name, text in contents().items():
        (folder / name).write_text(text, encoding="utf-8")
