"""What the rules see of one step."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gpuwatch.state import layers
from gpuwatch.state.names import NameTable
from gpuwatch.state.records import Event, Scalar
from gpuwatch.state.steps import Step

if TYPE_CHECKING:
    from gpuwatch.detectors.loss_level import LossLevel, Rise

#: A jump of the learning rate is named as a cause for this many steps.
CAUSE_STEPS = 50
NOTHING: Mapping[str, Any] = {}


class Sample:
    """One step of one run. Per-tensor arrays are indexed like the name table and unpacked when a rule first asks."""

    def __init__(self, step: Step, names: NameTable, dropped: Mapping[str, int] = NOTHING, *, new_regime: bool = False) -> None:
        self.step = step
        self.number = step.step
        self.values = step.values
        #: The optimizer did change the weights: the loss scaler did not skip this step.
        self.applied = not step.values.get("skipped", 0.0) > 0.0
        self.names = names
        self.dropped = dropped  # records lost since the run began, by reason
        self.rate_jump: tuple[int, float, float] | None = None  # the last: step, learning rate before, and after
        self.new_regime = new_regime  # the optimizer was set up anew: what was normal before says nothing now
        self.facts: Mapping[str, str | int | float | bool] = NOTHING  # about the run, as of now rather than of this step
        self.logged: Sequence[Scalar] = ()  # what the job logged and came in since the step before: seldom in step with it
        self.events: Sequence[Event] = ()  # the run's last ones, in order; perhaps later ones than this step too
        self.previous_ns = 0  # CLOCK_MONOTONIC of the step before
        self.loss_level: LossLevel | None = None  # of the run: it follows each step of which a rule asks for `rise`

    @cached_property
    def rise(self) -> Rise | None:
        """The loss beside its recent level; None when there is nothing to compare. Taken once, for all rules that ask."""
        return self.loss_level.observe(self) if self.loss_level is not None else None

    @property
    def cause(self) -> str:
        """What has just been done to the run, as the end of a sentence; empty when nothing has."""
        if self.rate_jump is None or not 0 <= self.number - self.rate_jump[0] <= CAUSE_STEPS:
            return ""
        step, before, after = self.rate_jump
        return f", after the learning rate went from {before:.3g} to {after:.3g} at step {step}"

    def value(self, name: str) -> float | None:
        """A step field that was measured and is finite, else None."""
        value = self.values.get(name)
        return value if value is not None and math.isfinite(value) else None

    def news(self, code: str) -> list[Event]:
        """The events of this kind that the hooks sent between the step before and this one."""
        events = self.events
        if not events or events[-1].monotonic_ns <= self.previous_ns:
            return []
        until_ns = self.step.monotonic_ns
        return [event for event in events if event.code == code and self.previous_ns < event.monotonic_ns <= until_ns]

    def states(self, code: str, known: dict[str, int]) -> dict[str, int]:
        """What is so after this step, by an event's text -> since which step: value 1 says that it begins, 0 that it ends."""
        news = self.news(code)
        if news:
            known = dict(known)
            for event in news:
                if event.value > 0.0:
                    known.setdefault(event.text, event.step)
                else:
                    known.pop(event.text, None)
        return known

    @property
    def has_layers(self) -> bool:
        """The step carries statistics of single tensors."""
        return bool(self.step.tensors)

    @cached_property
    def gradient_norms(self) -> array[float] | None:
        """float32[tensors]: L2 of each gradient, NaN where there is none; None when this step carries no layers."""
        return self.column("gradient", "norm")

    def column(self, family: str, statistic: str) -> array[float] | None:
        """float32[tensors]: one statistic of one family in this step (wire.FAMILIES, wire.TENSOR_COLUMNS)."""
        parts = []
        for rows in self.step.tensors:
            if rows.family == family:
                cells = layers.column(rows, statistic)
                if cells is not None:
                    parts.append((rows.first, cells))
        if not parts:
            return None
        if len(parts) == 1 and parts[0][0] == 0:
            return parts[0][1]
        parts.sort(key=lambda part: part[0])
        whole = array("f")
        for first, cells in parts:
            if first > len(whole):
                whole.extend([math.nan] * (first - len(whole)))
            whole[first : first + len(cells)] = cells
        return whole
