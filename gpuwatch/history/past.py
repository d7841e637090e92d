"""Everything that one process of a run recorded: step series, layers, scalars, findings, facts."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path

from gpuwatch_hooks import wire

from gpuwatch.history.layers import LayerSamples
from gpuwatch.state import frames
from gpuwatch.state.findings import Finding
from gpuwatch.state.identity import Hello
from gpuwatch.state.journal_reader import JournalReader
from gpuwatch.state.records import DecodeError, HistogramRows, Media, Meta, Names, Record, Scalar, TensorRows
from gpuwatch.state.steps import Step, StepMerger

JOURNAL_FOLDER = "journal"
_WANTED = {
    frames.KIND_HELLO,
    frames.KIND_NAMES,
    frames.KIND_SCALARS,
    frames.KIND_MEDIA,
    frames.KIND_META,
    frames.KIND_FINDING,
}
_RING_KINDS = {wire.KIND_STEP, wire.KIND_END, wire.KIND_TENSORS, wire.KIND_HISTOGRAMS}
_FRAMES_A_READ = 4096


class Past:
    """A process's recorded past. Series are int64/float64 arrays of equal length, in the order of the steps."""

    def __init__(self) -> None:
        self.hello: Hello | None = None
        self.facts: dict[str, str | int | float | bool] = {}
        self.groups: list[str] = []
        self.tensors: list[str] = []  # parameter names, by tensor index
        self.layers = {family: LayerSamples() for family in wire.FAMILIES}
        self.steps = array("q")  # step numbers, strictly increasing
        self.monotonic_ns = array("q")  # when each was recorded
        self.learning_rates = array("d")  # of the first parameter group; NaN where a step had none
        self.fields: dict[str, tuple[array[int], array[float]]] = {}  # wire.STEP_FIELDS -> (steps, values) where measured
        self.histograms: dict[tuple[int, int], HistogramRows] = {}  # (optimizer, first row) -> the last of the gradients
        self.scalars: dict[str, list[Scalar]] = {}  # tag -> in the order of logging
        self.media: list[Media] = []  # without their data
        self.findings: list[Finding] = []  # as they were opened, changed and closed
        self.lost_bytes = 0  # damaged stretches of the journal, skipped

    def series(self, field: str) -> tuple[array[int], array[float]]:
        """(step numbers int64[n], values float64[n]) of one of wire.STEP_FIELDS; empty when it was never measured."""
        return self.fields.get(field, (array("q"), array("d")))

    def values(self, field: str) -> array[float]:
        """float64[n]: the field at each step that has it."""
        return self.series(field)[1]

    def tensor_name(self, index: int) -> str:
        """The name of a tensor of `layers`."""
        return self.tensors[index] if index < len(self.tensors) else f"tensor{index}"

    def _add_ring(self, record: Record, merger: StepMerger) -> None:
        if isinstance(record, TensorRows):
            self.layers[record.family].add(record)
        elif isinstance(record, HistogramRows):
            if record.family == "gradient":
                self.histograms[record.optimizer, record.first] = record
        else:
            for step in merger.feed(record):
                self._add_step(step)

    def _add_step(self, step: Step) -> None:
        self.steps.append(step.step)
        self.monotonic_ns.append(step.monotonic_ns)
        groups = step.groups.get(min(step.groups), ()) if step.groups else ()
        self.learning_rates.append(groups[0][0] if groups else float("nan"))
        for name, value in step.values.items():
            known = self.fields.get(name)
            if known is None:
                known = self.fields[name] = (array("q"), array("d"))
            known[0].append(step.step)
            known[1].append(value)

    def _add_control(self, record: Record | frames.Control) -> None:
        if isinstance(record, Hello):
            self.hello = record
        elif isinstance(record, Names):
            table = {"group": self.groups, "tensor": self.tensors}.get(record.table)
            if table is not None:
                table[record.first :] = record.names
        elif isinstance(record, Meta):
            self.facts.update(record.facts)
        elif isinstance(record, Finding):
            self.findings.append(record)
        elif isinstance(record, Media):
            self.media.append(Media(record.kind, record.tag, record.step, record.shape, b"", record.monotonic_ns))
        elif isinstance(record, tuple):
            for scalar in record:
                self.scalars.setdefault(scalar.tag, []).append(scalar)


def read(directory: Path, told: Callable[[int], None] | None = None, *, ended: bool = False) -> Past:
    """The past of the process recorded in `directory` (LOGDIR/RUN[/rankN]). Raises OSError when it has no journal.

    `told` is called now and then with the bytes still to be read. What is damaged is skipped and counted in `lost_bytes`;
    of a run that has `ended` also what cannot be read at the journal's end, where another may still be being written.
    """
    past, merger = Past(), StepMerger()
    reader = JournalReader(directory / JOURNAL_FOLDER)
    try:
        while entries := reader.read(_FRAMES_A_READ):
            for entry in entries:
                kind = entry.frame.kind
                try:
                    if kind in _WANTED:
                        past._add_control(entry.frame.decode())  # noqa: SLF001  # its builder
                    elif kind in _RING_KINDS:
                        past._add_ring(entry.frame.decode(), merger)  # type: ignore[arg-type]  # noqa: SLF001  # a ring record
                except DecodeError:
                    past.lost_bytes += len(entry.frame.payload)
            if told is not None:
                told(reader.behind_bytes())
        for step in merger.close():
            past._add_step(step)  # noqa: SLF001
        past.lost_bytes += reader.skipped_bytes + (reader.behind_bytes() if ended else 0)
    finally:
        reader.close()
    return past
