"""What the readings so far add up to: curves for the plots, and processor use from one reading to the next."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuwatch.top.reading import Reading

#: One point a second; the widest plot of a terminal that anybody has.
POINTS = 400


class Curves:
    """Of one GPU: ratios 0..1, oldest first, one a reading; None where it did not answer."""

    def __init__(self) -> None:
        self.utilization: deque[float | None] = deque(maxlen=POINTS)
        self.memory: deque[float | None] = deque(maxlen=POINTS)


class History:
    """Fed with readings in the order of their times; the same reading again changes nothing."""

    def __init__(self) -> None:
        self._curves: dict[str, Curves] = {}
        self._processors: dict[int, tuple[float, float]] = {}  # pid -> (CPU seconds, when)
        self._cpu_ratios: dict[int, float] = {}
        self._last_seconds = 0.0

    def add(self, reading: Reading) -> None:
        if reading.monotonic_seconds <= self._last_seconds:
            return
        self._last_seconds = reading.monotonic_seconds
        for gpu in reading.node.gpus:
            curves = self._curves.setdefault(gpu.uuid, Curves())
            used, size = gpu.values.get("memory_used_bytes"), gpu.values.get("memory_size_bytes")
            curves.utilization.append(gpu.values.get("utilization_ratio"))
            curves.memory.append(used / size if used is not None and size else None)
        self._follow_processors(reading)

    def curves(self, uuid: str) -> Curves:
        return self._curves.get(uuid) or Curves()

    def cpu_ratio(self, pid: int) -> float | None:
        """Processors that this training process keeps busy (1.0: one of them); None until it was seen twice."""
        return self._cpu_ratios.get(pid)

    def _follow_processors(self, reading: Reading) -> None:
        host = reading.node.host
        if host is None:
            return
        at_seconds, known = host.monotonic_ns / 1e9, self._processors
        self._processors = {pid: (process.cpu_seconds, at_seconds) for pid, process in host.processes.items()}
        for pid, (cpu_seconds, _) in self._processors.items():
            before, when = known.get(pid, (cpu_seconds, at_seconds))
            if at_seconds > when:
                self._cpu_ratios[pid] = max(0.0, cpu_seconds - before) / (at_seconds - when)
            elif pid in known:
                self._processors[pid] = known[pid]
        self._cpu_ratios = {pid: ratio for pid, ratio in self._cpu_ratios.items() if pid in self._processors}
