"""Who is on a device: the driver's lists of processes, and (dear: 1.7 ms) how busy each of them keeps it."""

from __future__ import annotations

import time
from ctypes import POINTER, byref, c_uint, c_ulonglong, cast, create_string_buffer

import pynvml

from gpuwatch.samplers.nvml_processes import IDLE, MAX_ROW_BYTES, UTILIZATION_BYTES, UTILIZATION_INFO_BYTES, busy_ratios

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would cost this process a megabyte
    from typing import Any

    from gpuwatch.samplers.device_report import ProcessRow
    from gpuwatch.samplers.nvml_driver import Driver
    from gpuwatch.samplers.nvml_processes import Busy, Row

_MAX_LISTED = 4096  # processes on one device: a longer list is garbage
_BUSY, _BUSY_INFO = "nvmlDeviceGetProcessUtilization", "nvmlDeviceGetProcessesUtilizationInfo"


class ProcessLists:
    """The lists of one device and the buffer that they are written into."""

    def __init__(self, driver: Driver, handle: Any) -> None:
        self._driver, self._handle = driver, handle
        self._calls = [
            (symbol, function, kind)
            for listed, kind in (("Compute", "compute"), ("MPSCompute", "compute"), ("Graphics", "graphics"))
            for symbol, function in [self._newest(f"nvmlDeviceGet{listed}RunningProcesses")]
            if function is not None
        ]
        self._buffer = create_string_buffer(MAX_ROW_BYTES * 64)
        # The second is for drivers that no longer answer the first; what it tells besides, nobody here asks for.
        self._busy_calls = [symbol for symbol in (_BUSY, _BUSY_INFO) if driver.function(symbol) is not None]
        self._busy_since_us = time.time_ns() // 1000 - 1_000_000
        self._ratios: dict[int, Busy] | None = None  # None: not asked yet, or never answered

    def rows(self, total_bytes: int, *, with_utilization: bool) -> list[ProcessRow]:
        """Each process once; its use of the device is as of the last time that it was asked for, None when nobody knows.

        Raises DeviceGoneError, DriverGoneError.
        """
        found: dict[int, tuple[int | None, str]] = {}
        for call in list(self._calls):
            rows = self._list(*call, total_bytes)
            if rows is None:
                self._calls.remove(call)
            for pid, used, kind in rows or ():
                if pid not in found:  # a process that computes and draws is in both lists
                    found[pid] = (used, kind)
        if with_utilization and self._busy_calls:
            self._read_busy(set(found))
        ratios = self._ratios
        return [(pid, kind, used, None if ratios is None else ratios.get(pid, IDLE)) for pid, (used, kind) in found.items()]

    def _list(self, symbol: str, function: Any, kind: str, total_bytes: int) -> list[Row] | None:
        """One list's rows; [] when this time there is none to believe; None when the device will never have one."""
        count = c_uint(len(self._buffer) // MAX_ROW_BYTES)
        code = function(self._handle, byref(count), self._buffer)
        if code == pynvml.NVML_ERROR_INSUFFICIENT_SIZE and count.value <= _MAX_LISTED:
            self._buffer = create_string_buffer(MAX_ROW_BYTES * 2 * count.value)
            count = c_uint(2 * count.value)
            code = function(self._handle, byref(count), self._buffer)
        if code != 0:
            return None if self._driver.failed(symbol, code) else []
        rows = self._driver.lists.rows(self._buffer.raw, count.value, kind, total_bytes)
        if rows is None:
            self._driver.count_error(symbol, "garbage")
        return rows or []

    def _read_busy(self, pids: set[int]) -> None:
        now_us = time.time_ns() // 1000
        if self._busy_since_us > now_us + 10_000_000:  # the wall clock went back
            self._busy_since_us = now_us
        symbol = self._busy_calls[0]
        is_info = symbol == _BUSY_INFO
        code, count = self._ask_busy_info() if is_info else self._ask_busy()
        if code == 0:
            self._ratios, self._busy_since_us = busy_ratios(
                self._buffer.raw, count, self._busy_since_us, now_us, pids, info=is_info
            )
        elif code == pynvml.NVML_ERROR_NOT_FOUND:
            self._ratios = {}  # nobody was busy
        elif self._driver.failed(symbol, code):
            del self._busy_calls[0]
            self._ratios = None

    def _ask_busy(self) -> tuple[int, int]:
        """(code, rows in the buffer)"""
        function, since = self._driver.function(_BUSY), c_ulonglong(self._busy_since_us)
        count = c_uint(len(self._buffer) // UTILIZATION_BYTES)
        code = function(self._handle, self._buffer, byref(count), since)
        if code == pynvml.NVML_ERROR_INSUFFICIENT_SIZE and count.value <= _MAX_LISTED:
            self._buffer = create_string_buffer(MAX_ROW_BYTES * 2 * count.value)
            code = function(self._handle, self._buffer, byref(count), since)
        return code, count.value

    def _ask_busy_info(self) -> tuple[int, int]:
        request = pynvml.c_nvmlProcessesUtilizationInfo_v1_t(0)
        request.version, request.lastSeenTimeStamp = pynvml.ProcessesUtilizationInfo_v1, self._busy_since_us
        code = pynvml.NVML_ERROR_INSUFFICIENT_SIZE
        for _ in range(2):
            if code != pynvml.NVML_ERROR_INSUFFICIENT_SIZE or request.processSamplesCount > _MAX_LISTED:
                break
            if request.processSamplesCount * UTILIZATION_INFO_BYTES > len(self._buffer):
                self._buffer = create_string_buffer(UTILIZATION_INFO_BYTES * 2 * request.processSamplesCount)
            request.processSamplesCount = len(self._buffer) // UTILIZATION_INFO_BYTES
            request.procUtilArray = cast(self._buffer, POINTER(pynvml.c_nvmlProcessUtilizationInfo_v1_t))
            code = self._driver.function(_BUSY_INFO)(self._handle, byref(request))
        return code, request.processSamplesCount

    def _newest(self, name: str) -> tuple[str, Any]:
        for symbol in (f"{name}_v3", f"{name}_v2"):
            function = self._driver.function(symbol)
            if function is not None:
                return symbol, function
        return name, None
