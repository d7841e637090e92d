"""The journal of one run in, TensorBoard's events out. No files and no clock: the same records give the same events."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

from gpuwatch_hooks import wire
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from gpuwatch.exporters import finding_text, hparams, summaries
from gpuwatch.exporters.layout import add_layout
from gpuwatch.exporters.step_event import StepEvent
from gpuwatch.exporters.step_summary import add_histograms, add_layers, points
from gpuwatch.exporters.written import Written
from gpuwatch.state.findings import Finding
from gpuwatch.state.identity import Hello
from gpuwatch.state.names import NameTable
from gpuwatch.state.records import End, HistogramRows, Media, Meta, Names, Scalar, StepPart, TensorRows
from gpuwatch.state.steps import Step, StepMerger

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuwatch.config import TensorBoard
    from gpuwatch.state.frames import Control
    from gpuwatch.state.records import Record

#: Scalars of the job that become columns of the hyper-parameters table; the first ones are the ones that it logs first.
#: Facts that are for gpuwatch's own commands, or have a table of their own: TensorBoard shows five columns at first.
_NO_PARAMETERS = ("outbox_dropped", "on_demand_", "amp_probe_", "amp_speedup_low", "amp_speedup_high")
_MAX_METRICS = 12
_HISTOGRAM_ROW = struct.Struct("<3d")
#: How long a step waits for the names of its tensors and groups. They come another way than the steps, and a little later.
NAMES_NS = 5_000_000_000
#: GPUs are sampled for us about once a second: between two samples a point would only say the same again, and a run on eight
#: GPUs has 32 of them, more than all the rest of a step.
GPUS_NS = 900_000_000


#: Media that are files for other programs: `gpuwatch trace` and `snapshot` take them from the journal.
_FILES = frozenset({"trace", "memory_snapshot"})


class RunEvents:
    """Translates records in the order of the journal. Each item given back is one serialized event: written whole or not."""

    def __init__(
        self,
        config: TensorBoard,
        max_tags: int,
        written: Written,
        gpu_readings: Callable[[int], list[tuple[str, float]]] = lambda _: [],
    ) -> None:
        self.written = written
        self.left_out = 0  # points that would have gone back on their tag's step axis, or had one tag too many
        self._config = config
        self._max_tags = max_tags
        self._gpu_readings = gpu_readings
        self._merger = StepMerger(written.last_step)
        self._step_event = StepEvent()
        self._unnamed: list[Step] = []  # steps that wait for names
        self._resigned = -1  # the version of the tensors' names whose rest is not waited for any more
        self._tensors = NameTable()
        self._groups = NameTable(wire.MAX_GROUPS * 16)
        self._optimizers = NameTable(256)
        self._hello: Hello | None = None
        self._wall_offset_ns = 0
        self._facts: dict[str, hparams.Fact] = {}
        self._last_ns = 0
        self._gpus_due_ns = 0
        self._layers_due_ns = 0
        self._histograms_due_ns = 0

    @property
    def is_idle(self) -> bool:
        """No step is half read: whoever resumes behind the last record misses nothing."""
        return self._merger.is_idle and not self._unnamed

    def observe(self, record: Record | Control) -> list[bytes]:
        """The events that one record of the journal makes."""
        if isinstance(record, StepPart | TensorRows | HistogramRows | End):
            return self._steps(self._merger.feed(record))
        if isinstance(record, Names):
            return self._names(record)
        if isinstance(record, tuple):
            return [event for scalar in record if (event := self._scalar(scalar))]
        if isinstance(record, Media):
            return self._media(record)
        if isinstance(record, Finding):
            return self._finding(record)
        if isinstance(record, Hello):
            self._hello = record
            self._wall_offset_ns = record.wall_ns - record.monotonic_ns
        elif isinstance(record, Meta):
            self._facts.update(record.facts)
        return []

    def flush(self, now_ns: int) -> list[bytes]:
        """The step that has waited too long for another optimizer, when all of the journal has been read."""
        return self._steps(self._merger.flush(now_ns), now_ns)

    def finish(self, reason: str) -> list[bytes]:
        """The run has ended, for `reason` (wire.END_REASONS, or anything else for a process that said no goodbye)."""
        self._unnamed += self._merger.close()
        events = [self._step(step) for step in self._unnamed]
        self._unnamed.clear()
        if not self.written.ended and (self.written.last_step or self.written.tags):
            events.append(self._hyperparameters(reason))
        self.written.ended = True
        return events

    def _steps(self, steps: list[Step], now_ns: int = 0) -> list[bytes]:
        """The events of the steps whose names are known. `steps` are new ones; what time it is, the newest step tells too."""
        self._unnamed += steps
        events = []
        while self._unnamed:
            oldest = self._unnamed[0]
            if not self._is_named(oldest):
                if max(now_ns, self._unnamed[-1].monotonic_ns) - oldest.monotonic_ns < NAMES_NS:
                    break
                self._resigned = self._tensors.version
            events.append(self._step(self._unnamed.pop(0)))
        return events

    def _is_named(self, step: Step) -> bool:
        if self._resigned == self._tensors.version:
            return True
        known = len(self._tensors.names)
        return (
            all(rows.table_version == self._tensors.version and rows.first + rows.count <= known for rows in step.tensors)
            and sum(map(len, step.groups.values())) <= len(self._groups.names)
            and (len(step.losses) < 2 or max(step.losses) < len(self._optimizers.names))
        )

    def _step(self, step: Step) -> bytes:
        whole_model = points(step, self._groups, self._optimizers)
        if not self.written.rates:
            self.written.rates = self._rates(step)
        self.written.last_step = step.step
        summary = self._beside(step)
        if not summary.value:
            event, self._last_ns = self._step_event.of(whole_model), max(self._last_ns, step.monotonic_ns)
            event.wall_time, event.step = self._wall_seconds(step.monotonic_ns), step.step
            data: bytes = event.SerializeToString()
            return data
        for tag, value in whole_model:
            summaries.add_scalar(summary, tag, value)
        return self._event(summary, step.step, step.monotonic_ns)

    def _beside(self, step: Step) -> Summary:
        """What is not written at each step: the layout once, the GPUs, layers and their histograms when they are due."""
        summary = Summary()
        if not self.written.layout:
            add_layout(summary)
            self.written.layout = True
        if step.monotonic_ns >= self._gpus_due_ns:
            for tag, value in self._gpu_readings(step.monotonic_ns):
                summaries.add_scalar(summary, tag, value)
                self._gpus_due_ns = step.monotonic_ns + GPUS_NS
        if self._config.layers and step.tensors and step.monotonic_ns >= self._layers_due_ns:
            add_layers(summary, step, self._tensors)
            self._layers_due_ns = step.monotonic_ns + int(self._config.layers_every_seconds * 1e9)
        if self._config.layers and step.histograms and step.monotonic_ns >= self._histograms_due_ns:
            add_histograms(summary, step, self._tensors, describe=not self._histograms_due_ns)
            self._histograms_due_ns = step.monotonic_ns + int(self._config.histograms_every_seconds * 1e9)
        return summary

    def _scalar(self, scalar: Scalar) -> bytes | None:
        tag = self._place_own(scalar.tag, "scalar", scalar.step)
        if tag is None:
            return None
        summary = Summary()
        summaries.add_scalar(summary, tag, scalar.value)
        return self._event(summary, scalar.step, scalar.monotonic_ns)

    def _media(self, media: Media) -> list[bytes]:
        if media.kind in _FILES:
            return []
        kind = "image" if media.kind in ("images", "feature_maps", "figure") else media.kind
        tag = self._place_own(media.tag, kind, media.step)
        if tag is None:
            return []
        summary = Summary()
        try:
            if media.kind == "figure":
                summaries.add_png(summary, tag, media.data)
            elif kind == "image":
                summaries.add_images(summary, tag, media.data, media.shape)
            elif kind == "histogram":
                summaries.add_histogram(summary, tag, list(_HISTOGRAM_ROW.iter_unpack(media.data)))
            else:
                summaries.add_text(summary, tag, media.data.decode("utf-8", "replace"))
        except (ValueError, struct.error):
            self.left_out += 1  # its shape and its bytes do not agree
            return []
        return [self._event(summary, media.step, media.monotonic_ns)]

    def _finding(self, finding: Finding) -> list[bytes]:
        step = finding.step if finding.state == "active" else finding.last_step
        tag = self.written.place(finding_text.tag(finding), "text", step, self._max_tags)
        if tag is None:
            return []  # it was told when it opened
        summary = Summary()
        summaries.add_text(summary, tag, finding_text.markdown(finding))
        return [_event(summary, step, finding.time)]

    def _names(self, names: Names) -> list[bytes]:
        table = {"tensor": self._tensors, "group": self._groups, "optimizer": self._optimizers}.get(names.table)
        if table is not None:
            table.add(names)
        return self._steps([])

    def _hyperparameters(self, reason: str) -> bytes:
        """Written at the end: TensorBoard reads each of these tags once, and metrics and facts come to light on the way."""
        facts = self._parameters()
        metrics = ["train/loss", *[tag for tag, (kind, _) in self.written.tags.items() if kind == "scalar"][:_MAX_METRICS]]
        group = self._hello.run if self._hello else "run"
        started = self._wall_seconds(self._hello.monotonic_ns) if self._hello else 0.0
        summary = Summary()
        hparams.add_experiment(summary, facts, metrics)
        hparams.add_session_start(summary, facts, group, started)
        hparams.add_session_end(summary, reason, self._wall_seconds(self._last_ns))
        return self._event(summary, self.written.last_step, self._last_ns)

    def _parameters(self) -> dict[str, hparams.Fact]:
        facts = self._facts | self.written.rates
        if self._hello is not None:
            facts |= {"world_size": self._hello.world_size, "torch": self._hello.torch}
        return {
            name: fact
            for name, fact in facts.items()
            if not name.startswith(_NO_PARAMETERS) and (not isinstance(fact, float) or math.isfinite(fact))
        }

    def _rates(self, step: Step) -> dict[str, float]:
        rates: dict[str, float] = {}
        pairs = [pair for optimizer in sorted(step.groups) for pair in step.groups[optimizer]]
        for number, (learning_rate, weight_decay) in enumerate(pairs):
            name = self._groups.names[number] if number < len(self._groups.names) else f"group{number}"
            rates |= {f"lr/{name}": learning_rate, f"weight_decay/{name}": weight_decay}
        return rates

    def _place_own(self, tag: str, kind: str, step: int) -> str | None:
        placed = self.written.place_own(tag, kind, step, self._max_tags)
        self.left_out += placed is None
        return placed

    def _wall_seconds(self, monotonic_ns: int) -> float:
        return (monotonic_ns + self._wall_offset_ns) / 1e9

    def _event(self, summary: Summary, step: int, monotonic_ns: int) -> bytes:
        self._last_ns = max(self._last_ns, monotonic_ns)
        return _event(summary, step, self._wall_seconds(monotonic_ns))


def _event(summary: Summary, step: int, wall_seconds: float) -> bytes:
    data: bytes = Event(wall_time=wall_seconds, step=step, summary=summary).SerializeToString()
    return data
