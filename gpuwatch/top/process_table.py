"""The process table as a widget, flat or as a tree: keeps its cursor on the same line while lines come, go and move."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text
from textual.widgets import DataTable

from gpuwatch.top import process_rows, process_tree
from gpuwatch.top.ancestors import ancestors
from gpuwatch.top.process_rows import NUMERIC, SORTABLE, ProcessRow
from gpuwatch.top.process_tree import Branch

if TYPE_CHECKING:
    from gpuwatch.top.reading import Reading

#: Columns whose interesting end is the small one.
_ASCENDING = {"GPU", "PID", "USER", "JOB", "COMMAND"}


class ProcessTable(DataTable[Text]):
    """`wanted` filters; `as_tree` groups by GPU, job and parent; `chosen` is the process under the cursor."""

    DEFAULT_CSS = """
    ProcessTable { scrollbar-size-vertical: 1; scrollbar-size-horizontal: 0; }
    ProcessTable:ansi > .datatable--header { background: ansi_default; color: ansi_default; text-style: bold reverse; }
    ProcessTable:ansi > .datatable--cursor { background: ansi_blue; color: ansi_bright_white; text-style: bold; }
    ProcessTable:nocolor > .datatable--cursor { text-style: reverse; }
    """

    def __init__(self) -> None:
        super().__init__(cursor_type="row", zebra_stripes=False, cell_padding=1, header_height=1)
        self.wanted = ""
        self.as_tree = False
        self._sorted_by = SORTABLE[0]
        self._largest_first = True
        self._lines: list[Branch] = []

    @property
    def chosen(self) -> ProcessRow | None:
        """None on a heading, and in an empty table."""
        return self._lines[self.cursor_row].process if 0 <= self.cursor_row < len(self._lines) else None

    @property
    def processes(self) -> list[ProcessRow]:
        """Those that are shown, from top to bottom."""
        return [line.process for line in self._lines if line.process is not None]

    def sort_by_next(self) -> None:
        """Go on to the next column that is worth sorting by, from its interesting end."""
        self._sorted_by = SORTABLE[(SORTABLE.index(self._sorted_by) + 1) % len(SORTABLE)]
        self._largest_first = self._sorted_by not in _ASCENDING

    def reverse(self) -> None:
        self._largest_first = not self._largest_first

    def show(self, found: list[ProcessRow], reading: Reading, width: int) -> None:
        """Replaces the lines by those of `found` that match, in a table of `width` cells."""
        before = self._lines[self.cursor_row].key if 0 <= self.cursor_row < len(self._lines) else ""
        lines = self._made(process_rows.matching(found, self.wanted), reading)
        widths = process_rows.columns([line.cells for line in lines], width - 1, self._sorted_by)  # -1: the scroll bar
        self.clear(columns=True)
        for name, room in widths.items():
            self.add_column(_aligned(self._heading(name), name, room), width=room, key=name)
        for line in lines:
            style = "" if line.process is not None else "bold"
            self.add_row(*(_aligned(line.cells[name], name, room, style) for name, room in widths.items()), key=line.key)
        self._lines = lines
        keys = [line.key for line in lines]
        self.move_cursor(row=keys.index(before) if before in keys else 0, animate=False)

    def _made(self, found: list[ProcessRow], reading: Reading) -> list[Branch]:
        if not self.as_tree:
            return [Branch(row.key, process_rows.cells(row), row) for row in self._ordered(found)]
        known = ancestors((row.pid, row.start_ticks) for row in found)
        return process_tree.branches(found, reading, known, self._ordered)

    def _ordered(self, found: list[ProcessRow]) -> list[ProcessRow]:
        return process_rows.ordered(found, self._sorted_by, largest_first=self._largest_first)

    def _heading(self, name: str) -> str:
        arrow = "▼" if self._largest_first else "▲"
        return f"{name}{arrow}" if name == self._sorted_by else name


def _aligned(text: str, column: str, room: int, style: str = "") -> Text:
    cut = text if len(text) <= room else text[: room - 1] + "…"
    return Text(cut, style=style, justify="right" if column in NUMERIC else "left")
