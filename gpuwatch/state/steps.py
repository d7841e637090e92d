"""Steps: the parts that the optimizers of one iteration reported, merged into one.

A generator and a discriminator share an iteration, so each optimizer step is a part and a step is all parts with one number.
The live state and the TensorBoard exporter, which reads the journal, use the same merger and so see the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from gpuwatch.state.records import End, HistogramRows, Record, StepPart, TensorRows

#: A step with several optimizers is final after this much silence, or twice the longest gap seen between its parts.
SILENCE_NS = 1_000_000_000
#: Optimizers that one step may have; a part more is counted as late. Each part is compared with all before it.
MAX_PARTS = 256
#: Tables held for a step that was not committed yet: 4 optimizers x 3 families x 2,000 tensors in 16 KiB slots fit.
MAX_WAITING_TABLES = 2048


class Step(msgspec.Struct, frozen=True):
    """One training iteration. `values` holds wire.STEP_FIELDS by name; what was not measured is absent (NaN is a value)."""

    step: int
    monotonic_ns: int  # when its last part was recorded
    values: dict[str, float]
    losses: dict[int, float]  # optimizer index -> that optimizer's own loss
    groups: dict[int, tuple[tuple[float, float], ...]]  # optimizer index -> (learning rate, weight decay) a group
    tensors: tuple[TensorRows, ...]  # raw float32 rows: who wants layers unpacks them (layers.py)
    histograms: tuple[HistogramRows, ...]


class StepMerger:
    """Feed it the records of one process in order; it gives back each step once, in strictly increasing order."""

    def __init__(self, last_step: int = 0) -> None:
        self.last_step = last_step  # the last step given back
        self.late_parts = 0  # parts of a step that was already final, or the same part twice: dropped
        self.patience_ns = SILENCE_NS
        self._parts: list[StepPart] = []
        self._tensors: list[TensorRows] = []  # committed by a part of the open step
        self._histograms: list[HistogramRows] = []
        self._waiting: list[TensorRows | HistogramRows] = []  # not committed yet
        self._late: tuple[int, int] = (0, 0)  # step and time of the last step closed by silence

    @property
    def is_idle(self) -> bool:
        """No part of a step waits for the rest of it."""
        return not (self._parts or self._waiting)

    def feed(self, record: Record) -> list[Step]:
        """The steps that `record` completes (none, one, or two). Records other than step, tables and end are passed over."""
        if isinstance(record, StepPart):
            return self._part(record)
        if isinstance(record, TensorRows | HistogramRows):
            if len(self._waiting) < MAX_WAITING_TABLES:
                self._waiting.append(record)
            return []
        if isinstance(record, End):
            self._waiting = []
            return self.close()
        return []

    def flush(self, now_ns: int) -> list[Step]:
        """The open step, when it has been silent for too long at CLOCK_MONOTONIC `now_ns`."""
        if self._parts and now_ns - self._parts[-1].monotonic_ns >= self.patience_ns:
            self._late = (self._parts[-1].step, self._parts[-1].monotonic_ns)
            return self.close()
        return []

    def _fits(self, part: StepPart) -> bool:
        """The open step, if there is one, may take this part."""
        others = self._parts
        return len(others) < MAX_PARTS and all(part.step == p.step and part.optimizer != p.optimizer for p in others)

    def close(self) -> list[Step]:
        """The open step, whatever it still waits for."""
        if not self._parts:
            return []
        step = merge(self._parts, tuple(self._tensors), tuple(self._histograms))
        self.last_step = step.step
        self._parts, self._tensors, self._histograms = [], [], []
        return [step]

    def _part(self, part: StepPart) -> list[Step]:
        tables, self._waiting = self._waiting, []
        done: list[Step] = []
        if self._parts and part.step > self._parts[0].step:
            done = self.close()
        if part.step <= self.last_step or not self._fits(part):
            self.late_parts += 1
            closed_step, closed_ns = self._late
            if part.step == closed_step:  # silence closed it too early: this run's optimizers are further apart
                self.patience_ns = max(self.patience_ns, 2 * (part.monotonic_ns - closed_ns))
            return done
        for table in tables:
            if table.step != part.step or table.optimizer != part.optimizer:
                continue  # the STEP record that should have committed it was overwritten in the ring
            if isinstance(table, TensorRows):
                self._tensors.append(table)
            else:
                self._histograms.append(table)
        if self._parts:
            self.patience_ns = max(self.patience_ns, 2 * (part.monotonic_ns - self._parts[-1].monotonic_ns))
        self._parts.append(part)
        return done + self.close() if part.complete else done


def merge(parts: list[StepPart], tensors: tuple[TensorRows, ...] = (), histograms: tuple[HistogramRows, ...] = ()) -> Step:
    """One step of at least one part: norms add in squares, peaks take the largest, counts and seconds add up.

    The loss is that of the lowest-numbered optimizer that has one. Shares, whose element counts are not on the wire, are
    averaged over the parts that have them.
    """
    parts = sorted(parts, key=lambda part: part.optimizer)
    values = _single(parts[0]) if len(parts) == 1 else _merged(parts)
    losses = {part.optimizer: part.values["loss"] for part in parts if "loss" in part.values}
    groups = {part.optimizer: part.groups for part in parts}
    last_ns = max(part.monotonic_ns for part in parts)
    return Step(parts[0].step, last_ns, values, losses, groups, tensors, histograms)


def _single(part: StepPart) -> dict[str, float]:
    values = part.values
    for name in _SECONDS:
        if values.get(name, 0.0) < 0.0:
            values = {**values, name: 0.0}
    return values


def _merged(parts: list[StepPart]) -> dict[str, float]:
    names = dict.fromkeys(name for part in parts for name in part.values)
    merged = {}
    for name in names:
        column = [part.values[name] for part in parts if name in part.values]
        merged[name] = _RULES.get(name, _first)(column)
    if "update_ratio" in merged:
        merged["update_ratio"] = _update_ratio(parts)
    return merged


def _update_ratio(parts: list[StepPart]) -> float:
    both = [part.values for part in parts if "update_ratio" in part.values]
    if all("weight_norm" in values for values in both):
        weights = math.hypot(*(values["weight_norm"] for values in both))
        if weights > 0.0:
            return math.hypot(*(values["update_ratio"] * values["weight_norm"] for values in both)) / weights
    return _largest([values["update_ratio"] for values in both])


def _first(column: list[float]) -> float:
    return column[0]


def _last(column: list[float]) -> float:
    return column[-1]


def _seconds(column: list[float]) -> float:
    return sum(max(value, 0.0) for value in column)


def _root_sum_of_squares(column: list[float]) -> float:
    return math.nan if any(map(math.isnan, column)) else math.hypot(*column)


def _largest(column: list[float]) -> float:
    return math.nan if any(map(math.isnan, column)) else max(column)


def _mean(column: list[float]) -> float:
    return sum(column) / len(column)


_SECONDS = (
    "step_seconds",
    "data_seconds",
    "forward_seconds",
    "backward_seconds",
    "optimizer_seconds",
    "other_seconds",
    "hook_seconds",
)
_RULES: dict[str, Callable[[list[float]], float]] = {
    **dict.fromkeys(_SECONDS, _seconds),
    **dict.fromkeys(("grad_norm", "grad_norm_clipped", "weight_norm"), _root_sum_of_squares),
    **dict.fromkeys(("grad_absmax", "torch_allocated_peak_bytes"), _largest),
    **dict.fromkeys(("skipped", "clipped_while_scaled", "thinning_level"), _largest),
    **dict.fromkeys(("micro_batches", "grad_nonfinite_count", "loss_scale_backoffs"), sum),
    **dict.fromkeys(("closure_calls", "tensors_without_gradient"), sum),
    **dict.fromkeys(("grad_zero_ratio", "grad_underflow_ratio", "autocast_ratio"), _mean),
    **dict.fromkeys(("torch_allocated_bytes", "torch_reserved_bytes", "torch_device_index", "overhead_ratio"), _last),
    "training_mode": min,
}
