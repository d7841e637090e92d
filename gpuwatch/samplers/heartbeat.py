"""What the NVML child is doing right now, in two numbers that it shares with the parent.

A driver call that never returns cannot say so through a pipe. Before the child asks a device it writes here since when, which
device and what for (0.1 us); the parent looks a few times a second.
"""

from __future__ import annotations

import mmap
import os

#: What the child may be busy with; the parent's messages to people name it.
PHASES = (
    "nothing",
    "starting NVML",
    "opening the device",
    "its memory",
    "its utilization and power",
    "its temperatures and clocks",
    "its energy counter",
    "its processes",
    "its limits and error counters",
    "its rings of samples",
)
NOTHING, STARTING, OPENING, MEMORY, FAST, GAUGES, ENERGY, PROCESSES, SLOW, RINGS = range(len(PHASES))

NO_DEVICE = -1


class Heartbeat:
    """One child's heartbeat; made by the parent, inherited by the child as a descriptor.

    Two cells of 64 bits, each written at once: since when (CLOCK_MONOTONIC ns, 0: idle), and phase << 32 | GPU index + 1.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            descriptor = os.memfd_create("gpuwatch-heartbeat", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, mmap.PAGESIZE)
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, mmap.PAGESIZE)
        self._cells = memoryview(self._memory).cast("q")

    def busy(self, since_ns: int, gpu_index: int, phase: int) -> None:
        cells = self._cells
        cells[1] = phase << 32 | gpu_index + 1
        cells[0] = since_ns

    def idle(self) -> None:
        self._cells[0] = 0

    def read(self) -> tuple[int, int, int]:
        """(since when in CLOCK_MONOTONIC ns or 0 when idle, GPU index or NO_DEVICE, phase)."""
        since_ns, what = self._cells[0], self._cells[1]
        return since_ns, (what & 0xFFFFFFFF) - 1, (what >> 32) % len(PHASES)

    def close(self) -> None:
        self._cells.release()
        self._memory.close()
        os.close(self.descriptor)
