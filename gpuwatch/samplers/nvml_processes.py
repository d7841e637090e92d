"""What the driver's lists of processes mean: their two layouts, and which rows are garbage. Bytes in, rows out; no driver.

Early R535 drivers appended 8 bytes to the rows of `..RunningProcesses_v3` without a new version, and later ones took them
back. Read with the wrong stride the list is scrambled from its second row on, so both are tried and the sensible one is kept.
"""

from __future__ import annotations

import struct

# (pid, used bytes or None, kind "compute" | "graphics")
Row = tuple[int, int | None, str]

_LAYOUTS = {24: struct.Struct("<I4xQII"), 32: struct.Struct("<I4xQIIQ")}
_UTILIZATION = struct.Struct("<I4xQIIII")  # pid, stamp in us of wall time, sm, memory, encoder, decoder in per cent
UTILIZATION_BYTES = _UTILIZATION.size
MAX_ROW_BYTES = 32

_NOT_AVAILABLE = 2**64 - 1
# The kernel's own limit, not /proc/sys/kernel/pid_max: the driver tells the host's pids, also to a container with a lower one.
_PID_LIMIT = 1 << 22


class ProcessLists:
    """Decodes the lists of one driver, and remembers which layout it writes once a list has told them apart."""

    def __init__(self, likely_stride: int) -> None:
        self._strides = (likely_stride, 56 - likely_stride)  # 24 and 32, the likely one first

    def rows(self, buffer: bytes, count: int, kind: str, memory_total: int) -> list[Row] | None:
        """The rows of a list, or None when it makes no sense in either layout."""
        for stride in self._strides:
            rows = [
                (pid, None if used == _NOT_AVAILABLE else used, kind)
                for pid, used, *_ in _LAYOUTS[stride].iter_unpack(buffer[: stride * count])
            ]
            if all(0 < pid <= _PID_LIMIT and (used is None or used <= memory_total) for pid, used, _ in rows):
                if count > 1:
                    self._strides = (stride, 56 - stride)
                return rows
        return None


def busy_ratios(buffer: bytes, count: int, since_us: int, now_us: int, known: set[int]) -> tuple[dict[int, float], int]:
    """Each known process's SM utilization since `since_us` (0..1), and the newest stamp of wall time in us to go on from.

    Drivers have been seen to fill such lists with utilizations of hundreds of per cent, processes that never were and stamps of
    long ago: such rows are left out.
    """
    ratios: dict[int, float] = {}
    newest_us = since_us
    for pid, stamp_us, sm, memory, encoder, decoder in _UTILIZATION.iter_unpack(buffer[: UTILIZATION_BYTES * count]):
        if stamp_us <= since_us or stamp_us > now_us + 10_000_000 or max(sm, memory, encoder, decoder) > 100:
            continue
        newest_us = max(newest_us, stamp_us)
        if pid in known:
            ratios[pid] = sm / 100
    return ratios, newest_us
