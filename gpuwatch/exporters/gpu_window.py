"""The last five minutes of every GPU, for the curves of the web page: a page that is opened late shows what went before.

Flat arrays of 4 bytes a point: eight GPUs take 48 kB. `gpu_history.py` keeps other values for another reader, joined to
processes and steps.
"""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuwatch.state.gpus import Gpu, Gpus

#: One a second; as long as the longest window of the peaks, so that the peak that is marked is the peak of what is drawn.
POINTS = 300
#: Name on the page -> key in Gpu.values.
CURVES = {
    "utilization_ratio": ("utilization_ratio", ()),
    "memory_used_bytes": ("memory_used_bytes", ()),
    "power_watts": ("power_watts", ()),
    "temperature_celsius": ("temperature_celsius", (("sensor", "core"),)),
}
PEAK = "memory_peak_bytes"  # the largest within each second, which the value at its end does not show


class GpuWindow:
    """`sample` about once a second, under the state's lock; read by the thread that samples."""

    def __init__(self) -> None:
        self._seconds = array("d")  # wall time of each point; one axis for all GPUs
        self._columns: dict[str, dict[str, array[float]]] = {}  # uuid -> name -> float32[len(self._seconds)]
        self._next = 0  # where the next point goes, once full

    def sample(self, gpus: Gpus, wall_seconds: float) -> None:
        """One point more. NaN where a GPU does not answer, or was not there yet."""
        filled = len(self._seconds)
        index = self._next if filled == POINTS else filled
        if filled < POINTS:
            self._seconds.append(wall_seconds)
            for columns in self._columns.values():
                for column in columns.values():
                    column.append(math.nan)
        else:
            self._seconds[index] = wall_seconds
            self._next = (index + 1) % POINTS
        seen = set()
        for gpu in gpus:
            seen.add(gpu.uuid)
            columns = self._columns.setdefault(gpu.uuid, {})
            if not columns:
                columns.update({name: array("f", [math.nan]) * len(self._seconds) for name in (*CURVES, PEAK)})
            for name, column in columns.items():
                column[index] = _value(gpu, name)
        for uuid in self._columns.keys() - seen:  # a MIG device that exists no more
            del self._columns[uuid]

    def curves(self) -> dict[str, object]:
        """{"seconds": [...], "gpus": {uuid: {name: [...]}}}, oldest first; None where there is no value."""
        seconds = [round(second, 1) for second in self._ordered(self._seconds)]
        gpus = {
            uuid: {name: [_plain(value) for value in self._ordered(column)] for name, column in columns.items()}
            for uuid, columns in self._columns.items()
        }
        return {"seconds": seconds, "gpus": gpus}

    def _ordered(self, column: array[float]) -> array[float]:
        return column[self._next :] + column[: self._next]


def _value(gpu: Gpu, name: str) -> float:
    if not gpu.up:
        return math.nan
    if name == PEAK:
        peak = gpu.memory_used_peaks.largest(gpu.last_sample_monotonic_ns, 0)
        return math.nan if peak is None else peak
    return gpu.values.get(CURVES[name], math.nan)


def _plain(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None
