"""Runs side by side, the first as the base: which columns there is anything to say in, and each run's ratio to the base."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from gpuwatch.history.measures import Level, Measures


class Row(msgspec.Struct, frozen=True):
    """One run. Ratios and savings are against the first row; None where either side was not measured."""

    run: str
    measures: Measures
    speedup_ratio: float | None
    memory_saving_ratio: float | None


def compare(runs: list[tuple[str, Measures]]) -> list[Row]:
    """A row for each (name, measures), in the order given."""
    base = runs[0][1]
    return [
        Row(
            name,
            measured,
            _ratio(measured.steps_per_second, base.steps_per_second),
            _saving(measured.peak_memory_bytes, base.peak_memory_bytes),
        )
        for name, measured in runs
    ]


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _saving(value: float | None, base: float | None) -> float | None:
    return 1.0 - value / base if value is not None and base else None


def _percent(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}%}".replace("%", " %")


def _last(level: Level | None) -> float | None:
    return level.last if level is not None else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _mebibytes(value: float | None) -> str:
    return "" if value is None else f"{value / (1 << 20):,.0f} MiB"


def _process_memory(measured: Measures) -> str:
    """The process's own peak, libraries and all, where there is no device allocator to ask; nobody's saving follows from it."""
    return _mebibytes(measured.peak_resident_bytes) if measured.peak_memory_bytes is None else ""


def _points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f} points"


def _speed(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


#: Heading -> the cell of a row; a column that is empty in every row is left out.
COLUMNS: dict[str, Callable[[Row], str]] = {
    "run": lambda row: row.run,
    "steps": lambda row: f"{row.measures.steps:,}",
    "train accuracy": lambda row: _percent(_last(row.measures.train_accuracy)),
    "validation accuracy": lambda row: _percent(_last(row.measures.validation_accuracy)),
    "accuracy gap": lambda row: _points(row.measures.accuracy_gap),
    "train loss": lambda row: _number(_last(row.measures.train_loss)),
    "validation loss": lambda row: _number(_last(row.measures.validation_loss)),
    "loss gap": lambda row: _number(row.measures.loss_gap),
    "precision": lambda row: row.measures.precision,
    "batch": lambda row: row.measures.batch,
    "it/s": lambda row: _speed(row.measures.steps_per_second),
    "speed-up": lambda row: "" if row.speedup_ratio is None else f"{row.speedup_ratio:.2f}x",
    "peak memory": lambda row: _mebibytes(row.measures.peak_memory_bytes),
    "process memory": lambda row: _process_memory(row.measures),
    "saved": lambda row: _percent(row.memory_saving_ratio),
    "findings": lambda row: ", ".join(row.measures.findings) or "none",
}


def table(rows: list[Row]) -> list[list[str]]:
    """The heading and a line a run, as text; empty cells are what was not measured."""
    shown = {name: [cell(row) for row in rows] for name, cell in COLUMNS.items()}
    kept = [name for name, cells in shown.items() if any(cells)]
    return [kept, *([shown[name][index] for name in kept] for index in range(len(rows)))]


def markdown(rows: list[Row]) -> str:
    """The table as GitHub and TensorBoard draw it. Pipes in names would end their cells, and are escaped."""
    heading, *lines = table(rows)
    numeric = {"steps", "it/s", "speed-up", "peak memory", "process memory", "saved"}
    numeric |= {"accuracy gap", "train accuracy", "validation accuracy"}
    rule = ["---:" if name in numeric else "---" for name in heading]
    return "".join(
        f"| {' | '.join(cell.replace('|', '&#124;') or '-' for cell in line)} |\n" for line in [heading, rule, *lines]
    )
