"""What a rule is: it judges one thing after the other and says "bad", "fine" or "not measured"; episodes are made elsewhere.

There are two kinds, by what they look at. A `Rule` sees each step of a run; a `MomentRule` sees, once a second, everything
around a run: its clock, its GPUs, the other ranks, the host and the daemon itself.
"""

from __future__ import annotations

import abc
import enum
from typing import Annotated, ClassVar, Generic, TypeVar

import msgspec

from gpuwatch.detectors.moment import Moment
from gpuwatch.detectors.sample import Sample

Positive = Annotated[float, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Steps = Annotated[int, msgspec.Meta(ge=1, le=100_000)]


class Quiet(enum.Enum):
    """A step that speaks for no episode."""

    FINE = "measured, and within the threshold"
    UNMEASURED = "this step says nothing about it"


class Verdict(msgspec.Struct, frozen=True):
    """A step that is bad, with the evidence. `value` and `threshold` are of the rule's `statistic`."""

    value: float
    threshold: float
    summary: str
    layer: str = ""
    severity: str = ""  # when it is not the rule's own
    first_step: int = 0  # where it began, when that was before this step
    certain: bool = False  # so far beyond the threshold that it opens an episode by itself


class Thresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[rules.NAME] of the configuration; each field's description goes into the rule's page."""


T = TypeVar("T", bound=Thresholds)


class AnyRule(abc.ABC, Generic[T]):
    """One rule, watching one run. Its module's docstring is its page (docs/rules/NAME.md, `gpuwatch explain NAME`)."""

    name: ClassVar[str]
    severity: ClassVar[str]  # of a verdict that does not say
    statistic: ClassVar[str]  # what value and threshold are, with the unit
    action: ClassVar[str]  # what to do, in one sentence
    thresholds_type: ClassVar[type[Thresholds]] = Thresholds
    #: An episode opens when `open_after` of the last `open_within` judged steps (or moments) are bad ...
    open_after: ClassVar[int] = 1
    open_within: ClassVar[int] = 1
    #: ... and closes after this many judged steps (or moments) in a row that are fine.
    quiet_steps: ClassVar[int] = 20

    def __init__(self, thresholds: T) -> None:
        self.thresholds = thresholds


class Rule(AnyRule[T]):
    """A rule about the steps of a run."""

    @abc.abstractmethod
    def judge(self, sample: Sample) -> Verdict | Quiet:
        """Judge one step; called once a step, in order."""


class MomentRule(AnyRule[T]):
    """A rule about what is around a run: its clock, GPUs, peers, host, and the daemon."""

    @abc.abstractmethod
    def judge(self, moment: Moment) -> Verdict | Quiet:
        """Judge one moment; called about once a second, in order, also while no step is made, and once at the run's end."""
