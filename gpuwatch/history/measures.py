"""One run in numbers: speed, memory, precision, accuracy. What was not measured is None, never a guess."""

from __future__ import annotations

import math
import statistics

import msgspec
from gpuwatch_hooks import wire

from gpuwatch.history.past import Past
from gpuwatch.state import scalar_tags
from gpuwatch.state.records import Scalar

#: Steps at the beginning that say little about the speed: allocator, autotuning and compilation warm up.
WARM_UP_STEPS = 10


class Level(msgspec.Struct, frozen=True):
    """A measure of one part of the data: its last value, its best one, and the tag that it was logged under."""

    last: float
    best: float
    best_step: int
    tag: str


class Measures(msgspec.Struct, frozen=True):
    """Durations in seconds, memory in bytes, accuracies as shares (0 to 1)."""

    steps: int
    steps_per_second: float | None  # 1 / median step time after warm-up
    step_seconds_quartiles: tuple[float, float] | None
    peak_memory_bytes: float | None  # torch's allocator; None on a CPU
    peak_resident_bytes: float | None  # of the whole process on the host, told at its end
    precision: str
    batch: str
    train_loss: Level | None
    validation_loss: Level | None
    train_accuracy: Level | None
    validation_accuracy: Level | None
    amp_speedup_ratio: float | None  # measured inside the run by the AMP probe
    findings: tuple[str, ...]  # rule ids, in the order of their first step

    @property
    def accuracy_gap(self) -> float | None:
        """Train accuracy less validation accuracy: what a model knows of its training data only."""
        if self.train_accuracy is None or self.validation_accuracy is None:
            return None
        return self.train_accuracy.last - self.validation_accuracy.last

    @property
    def loss_gap(self) -> float | None:
        """Validation loss less train loss."""
        if self.train_loss is None or self.validation_loss is None:
            return None
        return self.validation_loss.last - self.train_loss.last


def measure(past: Past) -> Measures:
    """The run's numbers, from everything that it recorded."""
    took = [value for value in list(past.values("step_seconds"))[WARM_UP_STEPS:] if value > 0.0]
    took = took or [value for value in past.values("step_seconds") if value > 0.0]
    quartiles = statistics.quantiles(took, n=4) if len(took) > 1 else None
    peaks = [value for value in past.values("torch_allocated_peak_bytes") if value > 0.0]
    rules = dict.fromkeys(finding.rule for finding in sorted(past.findings, key=lambda finding: finding.first_step))
    levels = _levels(past)
    speedup, resident = past.facts.get("amp_speedup_ratio"), past.facts.get("peak_resident_bytes")
    return Measures(
        steps=past.steps[-1] if past.steps else 0,
        steps_per_second=1.0 / statistics.median(took) if took else None,
        step_seconds_quartiles=(quartiles[0], quartiles[2]) if quartiles else None,
        peak_memory_bytes=max(peaks, default=None),
        peak_resident_bytes=float(resident) if isinstance(resident, int | float) else None,
        precision=_precision(past),
        batch=str(past.facts.get("per_device_train_batch_size", past.facts.get("batch_size", ""))),
        train_loss=levels.get((scalar_tags.TRAIN, "loss")) or _recorded_loss(past),
        validation_loss=levels.get((scalar_tags.VALIDATION, "loss")),
        train_accuracy=levels.get((scalar_tags.TRAIN, "accuracy")),
        validation_accuracy=levels.get((scalar_tags.VALIDATION, "accuracy")),
        amp_speedup_ratio=float(speedup) if isinstance(speedup, int | float) else None,
        findings=tuple(rules),
    )


def _levels(past: Past) -> dict[tuple[str, str], Level]:
    """The tag that was logged most often stands for its part and measure; accuracies in per cent become shares."""
    found: dict[tuple[str, str], list[Scalar]] = {}
    for tag, scalars in past.scalars.items():
        meaning = scalar_tags.meaning(tag)
        if meaning is None:
            continue
        points = [scalar for scalar in scalars if math.isfinite(scalar.value)]
        if len(points) > len(found.get(meaning, ())):
            found[meaning] = points
    return {key: _level(key[1], points) for key, points in found.items()}


def _level(kind: str, points: list[Scalar]) -> Level:
    scale = 0.01 if kind == "accuracy" and max(point.value for point in points) > 1.5 else 1.0
    best = (max if kind == "accuracy" else min)(points, key=lambda point: point.value)
    return Level(scale * points[-1].value, scale * best.value, best.step, points[-1].tag)


def _recorded_loss(past: Past) -> Level | None:
    """The training loss as the hooks saw it: the mean of the last twentieth, since one batch's loss is noise."""
    steps, values = past.series("loss")
    finite = [(value, step) for value, step in zip(values, steps, strict=True) if math.isfinite(value)]
    if not finite:
        return None
    tail = [value for value, _ in finite[-max(1, len(finite) // 20) :]]
    best, best_step = min(finite)
    return Level(statistics.fmean(tail), best, best_step, "train/loss")


def _precision(past: Past) -> str:
    """What the forward pass was computed in for most of the run."""
    told = past.facts.get("precision")
    if told:
        return str(told)
    dtypes = [int(value) for value in past.values("autocast_dtype") if value == value]  # noqa: PLR0124  # not NaN
    if not dtypes:
        return "float32"
    usual = statistics.mode(dtypes)
    return wire.AUTOCAST_DTYPES[usual] if 0 < usual < len(wire.AUTOCAST_DTYPES) else "float32"
