"""run.json: what a run is and how it stands, for commands that read runs and for a daemon that comes back.

It is replaced every two seconds while the run lives, so it may be that old; its checkpoint says how far into the
journal it goes, and the journal has the rest.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
from gpuwatch_hooks import wire

from gpuwatch.state.counters import Counters
from gpuwatch.state.course import Course
from gpuwatch.state.findings import Finding
from gpuwatch.state.identity import Hello, Identity

VERSION = 1
STATUSES = ("live", "finished", "failed", "lost")
#: Step fields that run.json carries a short history of, in RECENT_POINTS means over equal stretches of the run's window.
RECENT = ("loss", "grad_norm", "step_seconds", "loss_scale")
RECENT_POINTS = 64
#: Step fields whose course over the whole run is kept.
COURSES = ("loss", "grad_norm")
#: What a finding measured: may be NaN or infinite, which msgspec would write as null and not read again.
_MEASURED = ("value", "threshold")


class Checkpoint(msgspec.Struct):
    """The state after journal segment `segment`, offset `offset`: to go on, replay what follows."""

    segment: int
    offset: int
    last_step: int
    counters: Counters
    step_duration_counts: list[int]
    step_duration_sum_seconds: float
    sequences: dict[int, int] = {}  # ring id -> last ring record in the journal
    numbers: dict[int, int] = {}  # ring id -> last control message
    courses: dict[str, Course] = {}  # COURSES over the whole run


class RunSummary(msgspec.Struct):
    """One process of a run. Values that are not finite are strings here ("nan", "inf", "-inf"): JSON has no such numbers."""

    run: str  # the folder directly below the log directory
    directory: str  # below the log directory: "digits", "digits/rank0-2"
    rank: int
    world_size: int
    attempt: int
    identity: Identity
    hello: Hello
    status: str  # one of STATUSES; a live run whose process is gone was lost with its daemon
    #: exit, exception, detached; gone: without a word. From `gpuwatch run`: exit N, signal N; command exit N, command signal N
    #: for a child of the command, whose own number nobody tells.
    end_reason: str
    facts: dict[str, str | int | float | bool]
    started_wall_seconds: float
    updated_wall_seconds: float
    step: int
    values: dict[str, float | str]  # the last known value of each of wire.STEP_FIELDS
    learning_rates: list[float | str]
    counters: Counters
    scalars: dict[str, tuple[int, float | str]]  # tag -> last (step, value)
    tensors: int
    parameters: int
    findings: list[Finding]
    checkpoint: Checkpoint | None = None
    recent: dict[str, list[float | str]] = {}  # RECENT fields: their last windows, oldest first, for a plot
    version: int = VERSION
    kept_step: int | None = None  # the last step that the journal holds, where that is not `step`
    trouble: str = ""  # why what comes now is not kept: the disk is full, the folder was deleted
    daemon: Identity | None = None  # who wrote this: when it is gone, nobody follows the run


def encode(summary: RunSummary) -> bytes:
    """The file's bytes: one JSON object, indented, because people look into it."""
    return msgspec.json.format(msgspec.json.encode(tree(summary)), indent=1) + b"\n"


def tree(summary: RunSummary) -> dict[str, Any]:
    """The summary as JSON can hold it."""
    plain: dict[str, Any] = msgspec.to_builtins(summary, str_keys=True)
    for finding in plain["findings"]:  # a loss that became NaN is what a finding is about
        finding.update({name: jsonable(finding[name]) for name in _MEASURED})
    return plain


def decode(data: bytes) -> RunSummary | None:
    """A run.json, or None when it is none of ours (empty, damaged, another version's)."""
    try:
        return from_tree(msgspec.json.decode(data))
    except (msgspec.MsgspecError, RecursionError):
        return None


def from_tree(plain: Any) -> RunSummary | None:
    """The inverse of `tree`, which takes `plain` over; None for anything else."""
    try:
        for finding in plain["findings"]:
            finding.update({name: number(finding[name]) for name in _MEASURED})
        summary = msgspec.convert(plain, RunSummary, str_keys=True)
    except (msgspec.MsgspecError, RecursionError, TypeError, KeyError, AttributeError):
        return None
    return summary if summary.version == VERSION else None


def size_in_words(summary: RunSummary) -> str:
    """How many parameters are trained, as far as their table goes; empty where none is known."""
    if not summary.tensors:
        return ""
    at_least = "at least " if summary.tensors >= wire.MAX_TENSORS else ""
    return f"{at_least}{summary.parameters:,} parameters in {at_least}{summary.tensors:,} tensors"


def jsonable(value: float) -> float | str:
    """A float as JSON can hold it."""
    return value if math.isfinite(value) else str(value)


def number(value: float | str) -> float:
    """The inverse of `jsonable`; NaN for a string that is no number."""
    try:
        return float(value)
    except ValueError:
        return math.nan
