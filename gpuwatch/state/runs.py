"""A run: one training process as the daemon knows it, built record by record."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import msgspec
from gpuwatch_hooks import wire

from gpuwatch.state import frames
from gpuwatch.state.counters import Counters, seconds
from gpuwatch.state.course import Course
from gpuwatch.state.directories import RunDirectory
from gpuwatch.state.durations import Durations
from gpuwatch.state.identity import Hello, Identity
from gpuwatch.state.journal import JournalWriter
from gpuwatch.state.names import NameTable
from gpuwatch.state.records import End, Event, HistogramRows, Meta, Names, Record, Scalar, StepPart, TensorRows
from gpuwatch.state.series import Window
from gpuwatch.state.steps import MAX_PARTS, Step, StepMerger
from gpuwatch.state.summary import COURSES, Checkpoint

#: Fields whose last points are kept for plots: 16 bytes a point.
WINDOWED = (
    *("loss", "grad_norm", "grad_norm_clipped", "step_seconds", "loss_scale", "update_ratio", "weight_norm"),
    "torch_allocated_bytes",
)
#: The window of the first parameter group's learning rate, which is no step field.
LEARNING_RATE = "learning_rate"
WINDOW_POINTS = 1024
#: A sampled value is given out until it is older than both.
STALE_STEPS = 512
STALE_NS = 30_000_000_000
MAX_TAGS = 500
MAX_LOGGED = 1000
MAX_FACTS = 200
MAX_EVENTS = 100


class Run:
    """One process of a run: read it under the State's lock; only the State's owner calls `observe`."""

    def __init__(self, hello: Hello, identity: Identity, place: RunDirectory, wall_seconds: float) -> None:
        self.hello = hello
        self.identity = identity
        self.name = place.name  # the label `run`
        self.directory = place.relative  # below the log directory; unique
        self.path = place.path
        self.place = place
        self.rank = max(0, hello.rank)
        self.world_size = max(1, hello.world_size)
        self.attempt = place.attempt
        self.status = "live"  # live | finished | failed | lost
        self.end_reason = ""
        self.started_wall_seconds = wall_seconds
        self.facts: dict[str, str | int | float | bool] = {}
        self.tensors = NameTable()
        self.groups = NameTable(wire.MAX_GROUPS * 16)
        self.optimizers = NameTable(256)
        self.counters = Counters()
        self.durations = Durations()
        self.step: Step | None = None  # the last final one
        self.values: dict[str, float] = {}  # the last known value of each step field: sampled ones are older than `step`
        self._measured_at: dict[str, tuple[int, int]] = {}  # name in `values` -> step, CLOCK_MONOTONIC ns
        self._oldest_step = 0  # nothing in _measured_at is of a step before it
        self.learning_rates: list[tuple[float, float]] = []  # (learning rate, weight decay) as `groups` names them
        self.scalars: dict[str, Scalar] = {}
        self.logged: deque[Scalar] = deque(maxlen=MAX_LOGGED)  # the last ones of all tags, in the order of arrival
        self.logged_count = 0  # scalars that arrived
        self.tags_left_out = 0
        self.events: list[Event] = []  # the last MAX_EVENTS
        self.windows = {name: Window(WINDOW_POINTS) for name in (*WINDOWED, LEARNING_RATE)}
        self.courses = {name: Course() for name in COURSES}  # since the run began, however long ago
        self.merger = StepMerger()
        self.first_steps: list[Step] = []  # the run's first ones, where it began under a daemon before us
        self.journal: JournalWriter | None = None
        self.kept_step = 0  # the last step that the journal holds
        self.checkpoint: Checkpoint | None = None  # the last one that run.json was given
        self.changed = True  # since run.json was written
        self._rates: dict[int, tuple[tuple[float, float], ...]] = {}  # optimizer -> (learning rate, weight decay) a group
        self._tables: dict[tuple[str, int], tuple[TensorRows, ...]] = {}
        self._histograms: dict[tuple[str, int], tuple[HistogramRows, ...]] = {}

    @property
    def last_step(self) -> int:
        return self.merger.last_step

    @property
    def resume_sequence(self) -> int:
        """The last record of the process's present ring that is safe: intake reads on behind it."""
        return self.journal.durable_sequence.get(self.hello.ring_id, 0) if self.journal else 0

    @property
    def acknowledged(self) -> int:
        """The last control message `n` that is safe."""
        return self.journal.durable_number.get(self.hello.ring_id, 0) if self.journal else 0

    def wall_seconds(self, monotonic_ns: int) -> float:
        """Seconds since the epoch at a moment of the process's CLOCK_MONOTONIC, by the clock pair of its hello."""
        return (self.hello.wall_ns + monotonic_ns - self.hello.monotonic_ns) / 1e9

    def group_name(self, index: int) -> str:
        """The name of the index-th entry of `learning_rates`."""
        return self.groups.names[index] if index < len(self.groups.names) else f"group{index}"

    def tables(self, family: str) -> Iterator[TensorRows]:
        """The latest rows of each tensor of one family (wire.FAMILIES); see layers.py."""
        for (kept, _), tables in self._tables.items():
            if kept == family:
                yield from tables

    def histograms(self, family: str) -> Iterator[HistogramRows]:
        """The latest histograms of one family."""
        for (kept, _), tables in self._histograms.items():
            if kept == family:
                yield from tables

    def observe(self, record: Record | frames.Control) -> list[Step]:
        """Take in one record; the steps that it made final."""
        self.changed = True
        if isinstance(record, StepPart | TensorRows | HistogramRows):
            steps = self.merger.feed(record)
            return self._finish(steps) if steps else steps
        if isinstance(record, tuple):
            for scalar in record:
                self._scalar(scalar)
        elif isinstance(record, Names):
            tables = {"tensor": self.tensors, "group": self.groups, "optimizer": self.optimizers}
            if record.table in tables:
                tables[record.table].add(record)
        elif isinstance(record, Meta):
            known = {**self.facts, **record.facts}
            self.facts = dict(list(known.items())[:MAX_FACTS])
        elif isinstance(record, Event):
            self.counters.count_event(record.code)
            self.events = [*self.events[1 - MAX_EVENTS :], record]
        elif isinstance(record, End):
            self.status = "failed" if record.reason == "exception" else "finished"
            self.end_reason = record.reason
            return self._finish(self.merger.feed(record))
        return []

    def flush(self, now_ns: int) -> list[Step]:
        """The step that has waited too long for another optimizer, if there is one."""
        return self._finish(self.merger.flush(now_ns))

    def lose(self) -> list[Step]:
        """The process is gone. Without an end of its own it crashed or was killed."""
        if self.status == "live":
            self.status, self.end_reason = "lost", "gone"
            self.changed = True
        return self._finish(self.merger.close())

    def conclude(self, status: int) -> None:
        """`gpuwatch run` says how its command, which was this process, ended: exit code, or minus the signal."""
        if self.status == "live" or (self.end_reason == "exception" and status > 0):
            return  # it is not over, or has told more than its exit code does
        self.status = "failed" if status else "finished"
        self.end_reason = f"signal {-status}" if status < 0 else f"exit {status}" if status else "exit"
        self.changed = True

    def conclude_command(self, status: int) -> None:
        """How the command that this process is a child of ended; 0 when it is not for this process to say that it failed.

        A process that leaves by sys.exit(3) says "exit", as one that is done does, and only its parent learns the number.
        """
        told = f"command signal {-status}" if status < 0 else f"command exit {status}" if status else "exit"
        if told != self.end_reason and (self.end_reason == "exit" or self.end_reason.startswith("command ")):
            self.status, self.end_reason = "failed" if status else "finished", told
            self.changed = True

    def preamble(self) -> Iterator[tuple[int, int, int, bytes]]:
        """What each journal segment begins with: (ring id, monotonic ns, kind, payload)."""
        records: list[frames.Control] = [self.hello]
        for table, entries in (("tensor", self.tensors), ("group", self.groups), ("optimizer", self.optimizers)):
            if entries.names:
                records.append(entries.stretch(table))
        if self.facts:
            records.append(Meta(self.facts))
        for record in records:
            yield self.hello.ring_id, self.hello.monotonic_ns, frames.control_kind(record), frames.encode_control(record)

    def _finish(self, steps: list[Step]) -> list[Step]:
        for step in steps:
            self.step = step
            self._remember(step)
            self._keep_rates(step)
            self.counters.add_step(step)
            self.counters.dropped["late"] = self.merger.late_parts
            took = step.values.get("step_seconds")
            if took is not None:
                self.durations.add(seconds(took))
            for name in WINDOWED:
                value = step.values.get(name)
                if value is not None:
                    self.windows[name].append(step.step, value)
            for name, course in self.courses.items():
                value = step.values.get(name)
                if value is not None:
                    course.add(step.step, value)
            if self.learning_rates:
                self.windows[LEARNING_RATE].append(step.step, self.learning_rates[0][0])
            self._keep_tables(step)
            self.changed = True
        return steps

    def _keep_rates(self, step: Step) -> None:
        # Optimizers that take turns (a GAN's) are not all in each step, and the name table numbers the groups of all.
        if all(self._rates.get(optimizer) == groups for optimizer, groups in step.groups.items()):
            return
        for optimizer, groups in step.groups.items():
            if optimizer in self._rates or len(self._rates) < MAX_PARTS:
                self._rates[optimizer] = groups
        self.learning_rates = [group for optimizer in sorted(self._rates) for group in self._rates[optimizer]]

    def _remember(self, step: Step) -> None:
        """Take the step's values over; what was sampled long ago is forgotten: nobody may take it for the present."""
        self.values.update(step.values)
        self._measured_at.update(dict.fromkeys(step.values, (step.step, step.monotonic_ns)))
        if step.step - self._oldest_step <= STALE_STEPS:
            return
        for name, (number, when_ns) in list(self._measured_at.items()):
            if step.step - number > STALE_STEPS and step.monotonic_ns - when_ns > STALE_NS:
                del self._measured_at[name]
                self.values.pop(name, None)
        self._oldest_step = min((number for number, _ in self._measured_at.values()), default=step.step)

    def _keep_tables(self, step: Step) -> None:
        if step.tensors:
            kept: dict[tuple[str, int], list[TensorRows]] = {}
            for rows in step.tensors:
                kept.setdefault((rows.family, rows.optimizer), []).append(rows)
            self._tables.update({key: tuple(tables) for key, tables in kept.items()})
        if step.histograms:
            shapes: dict[tuple[str, int], list[HistogramRows]] = {}
            for histogram in step.histograms:
                shapes.setdefault((histogram.family, histogram.optimizer), []).append(histogram)
            self._histograms.update({key: tuple(tables) for key, tables in shapes.items()})

    def _scalar(self, scalar: Scalar) -> None:
        if scalar.tag not in self.scalars and len(self.scalars) >= MAX_TAGS:
            self.tags_left_out += 1
            scalar = msgspec.structs.replace(scalar, tag=wire.OTHER_NAME)
        self.scalars[scalar.tag] = scalar
        self.logged.append(scalar)
        self.logged_count += 1
