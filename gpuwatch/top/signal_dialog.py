"""Asks which signal a process shall get; what is chosen when it opens is none."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from gpuwatch.top.signalling import SIGNALS

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType

    from gpuwatch.top.process_rows import ProcessRow

_MEANINGS = {
    signal.SIGINT: "as Ctrl-C does: many training scripts save and end",
    signal.SIGTERM: "asks it to end",
    signal.SIGKILL: "ends it at once: nothing is saved",
}


class SignalDialog(ModalScreen[signal.Signals | None]):
    """Returns the signal, or None."""

    CSS = """
    SignalDialog { align: center middle; }
    SignalDialog > Vertical { width: 68; max-width: 100%; height: auto; border: round red; padding: 0 1; }
    SignalDialog Static { text-wrap: wrap; margin-bottom: 1; }
    SignalDialog OptionList { height: auto; border: none; padding: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [("escape,q,n", "dismiss(None)", "cancel")]

    def __init__(self, row: ProcessRow) -> None:
        super().__init__()
        self._row = row

    def compose(self) -> ComposeResult:
        row = self._row
        about = ", ".join(
            filter(None, [row.command, row.user, row.job and f"training {row.job}", row.gpu and f"GPU {row.gpu}"])
        )
        with Vertical():
            yield Static(Text.assemble((f"Signal process {row.pid}", "bold"), f" ({about})?"))
            yield OptionList(
                Option("cancel", id=""),
                *(Option(f"{number.name:<8} {_MEANINGS[number]}", id=number.name) for number in SIGNALS),
            )

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(signal.Signals[event.option_id] if event.option_id else None)
