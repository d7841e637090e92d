"""The last minutes of the GPUs' readings, so that a training step can be shown beside what the GPU did at that moment."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gpuwatch.state.gpus import Gpus

#: Samples kept of each GPU: ten minutes at one a second, more than an exporter may be behind and still join by time.
_SAMPLES = 600
#: A reading further away than this belongs to another moment.
_MAX_DISTANCE_NS = 5_000_000_000
#: GPUs of a run whose process no GPU lists (a container without the host's pids, MIG): all of them, up to this many.
_MAX_GPUS = 16
#: name in Gpu.values -> last part of the tag
_VALUES = {"memory_used_bytes": "memory_used", "utilization_ratio": "utilization", "power_watts": "power"}


class _Sample(NamedTuple):
    monotonic_ns: int
    values: tuple[tuple[str, float], ...]  # tag, value
    pids: frozenset[int]


class GpuHistory:
    """Filled by `sample`, under the state's lock; read by the thread that fills it."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[_Sample]] = {}

    def sample(self, gpus: Gpus) -> None:
        """Take in each GPU's present values, when they are new."""
        for gpu in gpus:
            kept = self._samples.setdefault(gpu.label, deque(maxlen=_SAMPLES))
            if not gpu.up or (kept and kept[-1].monotonic_ns >= gpu.last_sample_monotonic_ns):
                continue
            values = [
                (f"gpu/{gpu.label}/{last}", value)
                for name, last in _VALUES.items()
                if (value := gpu.values.get((name, ()))) is not None
            ]
            peak = gpu.memory_used_peaks.largest(gpu.last_sample_monotonic_ns, 10)
            if peak is not None:
                values.append((f"gpu/{gpu.label}/memory_peak", peak))
            kept.append(_Sample(gpu.last_sample_monotonic_ns, tuple(values), frozenset(gpu.processes)))

    def readings(self, pid: int, monotonic_ns: int) -> list[tuple[str, float]]:
        """(tag, value) of the GPUs that process `pid` was on at a moment; of all GPUs when none lists the process."""
        nearest = [_nearest(kept, monotonic_ns) for kept in self._samples.values() if kept]
        near = [sample for sample in nearest if abs(sample.monotonic_ns - monotonic_ns) <= _MAX_DISTANCE_NS]
        own = [sample for sample in near if pid in sample.pids]
        return [value for sample in (own or near[:_MAX_GPUS]) for value in sample.values]


def _nearest(kept: deque[_Sample], monotonic_ns: int) -> _Sample:
    """The sample nearest in time. Sought from the end: a step that is being exported is mostly seconds old."""
    after = kept[-1]
    for sample in reversed(kept):
        if sample.monotonic_ns <= monotonic_ns:
            closer = monotonic_ns - sample.monotonic_ns <= abs(after.monotonic_ns - monotonic_ns)
            return sample if closer else after
        after = sample
    return after
