"""The live view. Widgets show lines and rows that the modules beside this one make; nothing is computed here."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from rich.text import Text
from textual.app import App
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Footer, Input, Static

from gpuwatch.top import feed, job_lines, process_rows, screen, signalling
from gpuwatch.top.history import History
from gpuwatch.top.lines import padded
from gpuwatch.top.process_table import ProcessTable
from gpuwatch.top.signal_dialog import SignalDialog

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterable

    from textual import events
    from textual.app import ComposeResult

    from gpuwatch.top.feed import Feed
    from gpuwatch.top.lines import Line
    from gpuwatch.top.process_rows import ProcessRow
    from gpuwatch.top.reading import Reading

_Widget = TypeVar("_Widget", bound=Widget)

#: How often the screen looks whether there is a new reading: these come once a second.
_LOOK_SECONDS = 0.2
_HEADLINE_ROWS, _KEY_ROWS = 1, 1


class TopApp(App[int]):
    """Shows what `source` reads, which a thread of its own keeps going: a daemon that hangs does not hang the screen."""

    CSS = """
    Screen { layout: vertical; }
    Static { text-wrap: nowrap; text-overflow: clip; width: 100%; }
    VerticalScroll { scrollbar-size-vertical: 1; overflow-x: hidden; height: 1; }
    #headline { height: 1; text-style: reverse; }
    #filter { display: none; height: 1; border: none; padding: 0 1; }
    #filter.open { display: block; }
    ProcessTable { height: 1fr; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "quit", "quit"),
        Binding("s", "sort", "sort by next"),
        Binding("r", "reverse", "reverse"),
        Binding("t", "tree", "tree"),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("escape", "unfilter", "no filter", show=False),
        Binding("k", "signal", "send signal"),
    ]

    def __init__(self, source: Feed, *, readonly: bool = False) -> None:
        # The terminal's own colours, and none at all with NO_COLOR.
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"
        self.history = History()
        self._source = source
        self._readonly = readonly
        self._drawn: Reading | None = None
        self._ending = threading.Event()
        self._reader = threading.Thread(target=self._read, name="gpuwatch-top-feed", daemon=True)

    def compose(self) -> ComposeResult:
        yield Static("gpuwatch", id="headline")
        with VerticalScroll(id="gpus", can_focus=False):
            yield Static("reading ...")
        with VerticalScroll(id="jobs", can_focus=False):
            yield Static()
        yield ProcessTable()
        yield Input(placeholder="words of the rows to show, gpu:0 for one GPU", id="filter", compact=True)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self._table.focus()
        self._reader.start()
        self.set_interval(_LOOK_SECONDS, self._look)

    def on_unmount(self) -> None:
        self._ending.set()
        self._reader.join(1.0)  # one that waits for a daemon that hangs dies with us

    def on_resize(self, _: events.Resize) -> None:
        self.call_after_refresh(self._draw)  # now the app still has its old size

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002  # Textual's signature
        return not (action == "signal" and self._readonly)

    def action_sort(self) -> None:
        self._table.sort_by_next()
        self._draw()

    def action_reverse(self) -> None:
        self._table.reverse()
        self._draw()

    def action_tree(self) -> None:
        self._table.as_tree = not self._table.as_tree
        self._draw()

    def action_filter(self) -> None:
        field = self._below("#filter", Input)
        field.add_class("open")
        field.focus()

    def action_unfilter(self) -> None:
        field = self._below("#filter", Input)
        field.value = ""
        field.remove_class("open")
        self._table.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._table.wanted = event.value
        self._draw()

    def on_input_submitted(self) -> None:
        if not self._table.wanted:
            self.action_unfilter()
        self._table.focus()

    def action_signal(self) -> None:
        row = self._table.chosen
        if row is not None:
            self.push_screen(SignalDialog(row), lambda number: self._send(row, number))

    @property
    def _table(self) -> ProcessTable:
        return self._below("ProcessTable", ProcessTable)

    def _below(self, selector: str, kind: type[_Widget]) -> _Widget:
        """A widget of the main screen, also while a dialog lies over it."""
        return self.screen_stack[0].query_one(selector, kind)

    def _send(self, row: ProcessRow, number: signal.Signals | None) -> None:
        if number is None or self._readonly:
            return
        refused = signalling.send(row, number)
        told = refused or f"{number.name} sent to {row.pid} ({row.command})"
        self.notify(told, severity="error" if refused else "information", markup=False)

    def _read(self) -> None:
        while not self._ending.wait(feed.TURN_SECONDS):
            self._source.turn()
        self._source.close()

    def _look(self) -> None:
        if self._source.reading is not self._drawn:
            self._draw()

    def _draw(self) -> None:
        reading = self._drawn = self._source.reading
        if reading is None:
            return
        self.history.add(reading)
        width, height = self.size
        jobs = job_lines.lines(reading, width)
        free_rows = height - _HEADLINE_ROWS - _KEY_ROWS
        shares = screen.share_out(width, free_rows, len(reading.node.gpus), len(jobs))
        gpus = screen.gpus(reading, self.history, width, shares)
        self._below("#headline", Static).update(_text([padded(screen.headline(reading, width), width)]))
        for name, lines, rows in (("gpus", gpus, shares.gpus), ("jobs", jobs, shares.jobs)):
            panel = self._below(f"#{name}", VerticalScroll)
            panel.styles.height = rows
            panel.query_one(Static).update(_text(lines))
        self._table.show(process_rows.rows(reading, self.history), reading, width)


def _text(lines: Iterable[Line]) -> Any:
    """The lines as Rich has them. Text is text: a name with brackets in it is no markup."""
    return Text("\n").join(Text.assemble(*line) for line in lines)
