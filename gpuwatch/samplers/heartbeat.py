"""What the NVML child is doing right now, in 16 bytes of memory that it shares with the parent.

A driver call that never returns cannot say so through a pipe. Before the child asks a device it writes here since when, which
device and what for (0.3 us); the parent reads it only when lines are late.
"""

from __future__ import annotations

import mmap
import os
import struct

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
)
NOTHING, STARTING, OPENING, MEMORY, FAST, GAUGES, ENERGY, PROCESSES, SLOW = range(len(PHASES))

NO_DEVICE = -1

_LAYOUT = struct.Struct("<Qii")  # since (CLOCK_MONOTONIC ns, 0: idle), index of the GPU or NO_DEVICE, phase


class Heartbeat:
    """One child's heartbeat; made by the parent, inherited by the child as a descriptor."""

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            descriptor = os.memfd_create("gpuwatch-heartbeat", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, mmap.PAGESIZE)
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, mmap.PAGESIZE)

    def busy(self, since_ns: int, gpu_index: int, phase: int) -> None:
        _LAYOUT.pack_into(self._memory, 0, since_ns, gpu_index, phase)

    def idle(self) -> None:
        _LAYOUT.pack_into(self._memory, 0, 0, NO_DEVICE, NOTHING)

    def read(self) -> tuple[int, int, int]:
        """(since when in CLOCK_MONOTONIC ns or 0 when idle, GPU index or NO_DEVICE, phase)."""
        since_ns, gpu_index, phase = _LAYOUT.unpack_from(self._memory, 0)
        return since_ns, gpu_index, phase % len(PHASES)

    def close(self) -> None:
        self._memory.close()
        os.close(self.descriptor)
