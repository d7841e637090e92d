"""The whole view as lines, and how the rows of a screen are shared out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from gpuwatch.top import gpu_lines, job_lines, process_rows
from gpuwatch.top.job_lines import HEAD_STYLE
from gpuwatch.top.lines import Line, Segment, cut, fitted
from gpuwatch.top.quantities import of_bytes, percent

if TYPE_CHECKING:
    from gpuwatch.top.history import History
    from gpuwatch.top.process_rows import ProcessRow
    from gpuwatch.top.reading import Reading

#: Two GPUs side by side from this width on: each still has 35 seconds of both curves.
_TWO_COLUMNS_FROM = 150
_GAP = 3
_MOST_PLOT_ROWS = 12
#: What the process table needs at least: its head, two rows.
_LEAST_TABLE_ROWS = 3


class Shares(NamedTuple):
    """Rows of a screen."""

    gpu_columns: int
    plot_rows: int  # of each GPU; 0: one line a GPU
    gpus: int
    jobs: int


def share_out(width: int, height: int, gpus: int, job_rows: int) -> Shares:
    """How `height` rows (headline and keys not counted) are shared: the GPUs get half, jobs what they need up to a third."""
    columns = 2 if width >= _TWO_COLUMNS_FROM and gpus > 1 else 1
    blocks = -(-gpus // columns)
    jobs = min(job_rows, max(2, height // 3))
    if not gpus:
        return Shares(1, 0, min(1, height), jobs)
    for_gpus = max(min(height // 2, height - jobs - _LEAST_TABLE_ROWS), 1)
    plot_rows = max(0, min(_MOST_PLOT_ROWS, for_gpus // blocks - gpu_lines.CAPTION_ROWS))
    if plot_rows:
        return Shares(columns, plot_rows, blocks * (plot_rows + gpu_lines.CAPTION_ROWS), jobs)
    # One line a GPU is scrolled when it has to be: more GPUs than rows are rare, and no GPU may be missing.
    return Shares(1, 0, max(1, min(gpus, height - jobs - _LEAST_TABLE_ROWS)), jobs)


def headline(reading: Reading, width: int) -> Line:
    """Where this comes from, the host, and the time."""
    node = reading.node
    host: Line = []
    if node.host is not None:
        used, size = of_bytes(node.host.memory_used_bytes), of_bytes(node.host.memory_size_bytes)
        host = [Segment(f"CPU {percent(node.host.cpu_utilization_ratio)}  RAM {used}/{size}")]
    driver: Line = [Segment(f"driver {node.driver_version}")] if node.driver_version else []
    at = time.strftime("%H:%M:%S", time.localtime(node.wall_seconds))
    note: Line = [Segment(reading.note, "bold red" if reading.stale else "" if reading.source == "daemon" else "yellow")]
    return fitted([(0, [Segment("gpuwatch", "bold")]), (1, note), (2, host), (4, driver), (3, [Segment(at, "dim")])], width)


def gpus(reading: Reading, history: History, width: int, shares: Shares) -> list[Line]:
    """Every GPU; one line that says why when there is none."""
    if not reading.node.gpus:
        return [cut([Segment(no_gpu(reading), "yellow")], width)]
    columns = shares.gpu_columns
    each = (width - _GAP * (columns - 1)) // columns
    blocks = [gpu_lines.block(gpu, history.curves(gpu.uuid), each, shares.plot_rows) for gpu in reading.node.gpus]
    found: list[Line] = []
    for first in range(0, len(blocks), columns):
        for row in zip(*blocks[first : first + columns], strict=True):
            joined: Line = []
            for line in row:
                joined += [Segment(" " * _GAP), *line] if joined else line
            found.append(joined)
    return found


def no_gpu(reading: Reading) -> str:
    """One sentence for a node that shows none."""
    node = reading.node
    sentences = {
        "starting": "no GPU has answered yet",
        "sampling": "the driver lists no GPU",
        "paused": "sampling of GPUs is paused",
        "off": "this daemon does not sample GPUs (sampling.gpus is false)",
    }
    return f"no GPU: {node.message or sentences.get(node.state, node.state)}"


def processes(found: list[ProcessRow], width: int) -> list[Line]:
    """The table as plain lines, with its head."""
    if not found:
        return [[Segment("no process on a GPU", "dim")]]
    widths = process_rows.columns([process_rows.cells(row) for row in found], width)

    def line(texts: dict[str, str], style: str) -> Line:
        told = []
        for name, room in widths.items():
            text = texts[name] if len(texts[name]) <= room else texts[name][: room - 1] + "…"
            told.append(text.rjust(room) if name in process_rows.NUMERIC else text.ljust(room))
        return cut([Segment("  ".join(told).rstrip(), style)], width)

    return [line({name: name for name in widths}, HEAD_STYLE), *(line(process_rows.cells(row), "") for row in found)]


def once(reading: Reading, history: History, width: int) -> list[Line]:
    """Everything, without plots, as long as it needs to be: for `gpuwatch top --once`."""
    shown = process_rows.ordered(process_rows.rows(reading, history), "MEM", largest_first=True)
    parts = [
        [headline(reading, width)],
        gpus(reading, history, width, Shares(1, 0, len(reading.node.gpus), 0)),
        job_lines.lines(reading, width),
        processes(shown, width) if shown or reading.node.gpus else [],
    ]
    separated: list[Line] = []
    for part in filter(None, parts):
        separated += [[], *part] if separated else part
    return separated
