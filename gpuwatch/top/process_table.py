"""The process table as a widget: keeps its cursor on the same process while rows come, go and move."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text
from textual.widgets import DataTable

from gpuwatch.top import process_rows
from gpuwatch.top.process_rows import NUMERIC, SORTABLE, ProcessRow

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Columns whose interesting end is the small one.
_ASCENDING = {"GPU", "PID", "USER", "JOB", "COMMAND"}


class ProcessTable(DataTable[Text]):
    """`wanted` filters; `chosen` is the row under the cursor."""

    DEFAULT_CSS = """
    ProcessTable { scrollbar-size-vertical: 1; scrollbar-size-horizontal: 0; }
    ProcessTable:ansi > .datatable--header { background: ansi_default; color: ansi_default; text-style: bold reverse; }
    ProcessTable:ansi > .datatable--cursor { background: ansi_blue; color: ansi_bright_white; text-style: bold; }
    ProcessTable:nocolor > .datatable--cursor { text-style: reverse; }
    """

    def __init__(self) -> None:
        super().__init__(cursor_type="row", zebra_stripes=False, cell_padding=1, header_height=1)
        self.wanted = ""
        self._sorted_by = SORTABLE[0]
        self._largest_first = True
        self._rows: list[ProcessRow] = []

    @property
    def chosen(self) -> ProcessRow | None:
        return self._rows[self.cursor_row] if 0 <= self.cursor_row < len(self._rows) else None

    def sort_by_next(self) -> None:
        """Go on to the next column that is worth sorting by, from its interesting end."""
        self._sorted_by = SORTABLE[(SORTABLE.index(self._sorted_by) + 1) % len(SORTABLE)]
        self._largest_first = self._sorted_by not in _ASCENDING

    def reverse(self) -> None:
        self._largest_first = not self._largest_first

    def show(self, found: Iterable[ProcessRow], width: int) -> None:
        """Replaces the rows by those of `found` that match, in a table of `width` cells."""
        before = self.chosen
        rows = process_rows.ordered(
            process_rows.matching(found, self.wanted), self._sorted_by, largest_first=self._largest_first
        )
        widths = process_rows.columns(rows, width - 1, self._sorted_by)  # -1: the scroll bar
        self.clear(columns=True)
        for name, room in widths.items():
            self.add_column(_aligned(self._heading(name), name, room), width=room, key=name)
        for row in rows:
            texts = process_rows.cells(row)
            self.add_row(*(_aligned(texts[name], name, room) for name, room in widths.items()), key=row.key)
        self._rows = rows
        again = next((index for index, row in enumerate(rows) if before is not None and row.key == before.key), 0)
        self.move_cursor(row=again, animate=False)

    def _heading(self, name: str) -> str:
        arrow = "▼" if self._largest_first else "▲"
        return f"{name}{arrow}" if name == self._sorted_by else name


def _aligned(text: str, column: str, room: int) -> Text:
    cut = text if len(text) <= room else text[: room - 1] + "…"
    return Text(cut, justify="right" if column in NUMERIC else "left")
