"""What the driver's lists of processes mean: their two layouts, and which rows are garbage. Bytes in, rows out; no driver.

Early R535 drivers appended 8 bytes to the rows of `..RunningProcesses_v3` without a new version, and later ones took them
back. Read with the wrong stride the list is scrambled from its second row on, so both are tried and the sensible one is kept.
"""

from __future__ import annotations

import struct

# (pid, used bytes or None, kind "compute" | "graphics")
Row = tuple[int, int | None, str]

_LAYOUTS = {24: struct.Struct("<I4xQII"), 32: struct.Struct("<I4xQIIQ")}
# pid, stamp in us of wall time, sm, memory, encoder, decoder in per cent
_UTILIZATION = struct.Struct("<I4xQIIII")
# The rows of nvmlDeviceGetProcessesUtilizationInfo: stamp, pid, sm, memory, encoder, decoder, then what nobody here asks for
_UTILIZATION_INFO = struct.Struct("<QIIIII12x")
UTILIZATION_BYTES, UTILIZATION_INFO_BYTES = _UTILIZATION.size, _UTILIZATION_INFO.size
MAX_ROW_BYTES = 32

# A process's share of the SMs, of the memory's bandwidth, of the encoders and of the decoders, 0..1
Busy = tuple[float, float, float, float]
IDLE: Busy = (0.0, 0.0, 0.0, 0.0)

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


def busy_ratios(
    buffer: bytes, count: int, since_us: int, now_us: int, known: set[int], *, info: bool = False
) -> tuple[dict[int, Busy], int]:
    """Each known process's use of the device since `since_us`, and the newest stamp of wall time in us to go on from.

    Drivers have been seen to fill such lists with utilizations of hundreds of per cent, processes that never were and stamps of
    long ago: such rows are left out. `info`: the rows are those of nvmlDeviceGetProcessesUtilizationInfo.
    """
    ratios: dict[int, Busy] = {}
    newest_us = since_us
    layout = _UTILIZATION_INFO if info else _UTILIZATION
    for first, second, sm, memory, encoder, decoder in layout.iter_unpack(buffer[: layout.size * count]):
        pid, stamp_us = (second, first) if info else (first, second)
        if stamp_us <= since_us or stamp_us > now_us + 10_000_000 or max(sm, memory, encoder, decoder) > 100:
            continue
        newest_us = max(newest_us, stamp_us)
        if pid in known:
            ratios[pid] = (sm / 100, memory / 100, encoder / 100, decoder / 100)
    return ratios, newest_us
