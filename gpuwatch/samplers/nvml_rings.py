"""nvmlDeviceGetSamples: what the driver itself recorded between two of our readings, for true extremes.

On an H100 the ring of power holds 119 samples 20 ms apart (0.23 ms a call) and those of utilization 71 samples 200 ms apart
(1.65 ms a call): read every other second and every ten seconds, none of them is missed and a second costs 0.5 ms for each GPU.
"""

from __future__ import annotations

import math
import time
from ctypes import byref, c_int, c_uint, c_ulonglong, create_string_buffer

import pynvml

from gpuwatch.samplers.device_report import is_low

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would cost this process a megabyte
    from typing import Any

    from gpuwatch.samplers.device_report import DeviceReport
    from gpuwatch.samplers.nvml_driver import Driver

# A ring: (name of the extreme, sampling type, factor to the name's unit, largest value that can be true)
Ring = tuple[str, int, float, float]

#: Filled about fifty times a second, gone after 2.4 s.
QUICK: tuple[Ring, ...] = (("power_peak_watts", pynvml.NVML_TOTAL_POWER_SAMPLES, 1e-3, 1e5),)
#: Filled about five times a second, gone after 14 s.
STEADY: tuple[Ring, ...] = (
    ("utilization_peak_ratio", pynvml.NVML_GPU_UTILIZATION_SAMPLES, 1e-2, 1.0),
    ("memory_bandwidth_utilization_peak_ratio", pynvml.NVML_MEMORY_UTILIZATION_SAMPLES, 1e-2, 1.0),
    ("clock_low_hertz;domain=sm", pynvml.NVML_PROCESSOR_CLK_SAMPLES, 1e6, 1e11),
    ("clock_low_hertz;domain=memory", pynvml.NVML_MEMORY_CLK_SAMPLES, 1e6, 1e11),
)
STEADY_SECONDS = 10.0

_CALL = "nvmlDeviceGetSamples"
_SAMPLE_BYTES = 16  # a timestamp in us of wall time, then a value of at most eight bytes
_MAX_SAMPLES = 4096


class Rings:
    """Some rings of one device. One that holds nothing at first never will, and is not asked again."""

    def __init__(self, driver: Driver, handle: Any, report: DeviceReport, rings: tuple[Ring, ...]) -> None:
        self._driver, self._handle, self._report = driver, handle, report
        self._call = driver.function(_CALL)
        self._value_type = c_int()
        self._rings: list[tuple[Ring, Any, Any]] = []  # with the newest stamp in us and the buffer
        for ring in rings if self._call is not None else ():
            count = self._held(ring)
            if 0 < count <= _MAX_SAMPLES:
                since = c_ulonglong(time.time_ns() // 1000)
                self._rings.append((ring, since, create_string_buffer(_SAMPLE_BYTES * count)))

    def read(self) -> None:
        """Reports the extremes of what is new since the last time. Raises DeviceGoneError, DriverGoneError."""
        absent = []
        now_us = time.time_ns() // 1000
        for bound in self._rings:
            ring, since, buffer = bound
            if since.value > now_us + 10_000_000:  # the wall clock went back
                since.value = now_us
            count = c_uint(len(buffer) // _SAMPLE_BYTES)
            code = self._call(self._handle, ring[1], since, byref(self._value_type), byref(count), buffer)
            if code == 0:
                self._take(ring, since, memoryview(buffer).cast("B")[: count.value * _SAMPLE_BYTES])
            elif code != pynvml.NVML_ERROR_NOT_FOUND and self._driver.failed(_CALL, code):  # not found: nothing new
                absent.append(bound)
        for bound in absent:
            self._rings.remove(bound)

    def _held(self, ring: Ring) -> int:
        """How many samples the ring has room for; 0 when there is no such ring."""
        count = c_uint(0)
        code = self._call(self._handle, ring[1], c_ulonglong(0), byref(self._value_type), byref(count), None)
        if code not in (0, pynvml.NVML_ERROR_INSUFFICIENT_SIZE, pynvml.NVML_ERROR_NOT_FOUND):
            self._driver.failed(_CALL, code)
        return count.value if code in (0, pynvml.NVML_ERROR_INSUFFICIENT_SIZE) else 0

    def _take(self, ring: Ring, since: Any, samples: memoryview) -> None:
        name, _, factor, most = ring
        words = samples.cast("I" if self._value_type.value in (1, 5) else "Q")
        width = 4 if words.itemsize == 4 else 2
        stamps, values = samples.cast("Q")[::2].tolist(), words[width // 2 :: width].tolist()
        now_us, now_ns = time.time_ns() // 1000, time.monotonic_ns()
        first, last = since.value, now_us + 1_000_000
        if stamps and (stamps != sorted(stamps) or not first < stamps[0] <= stamps[-1] <= last):
            stamps, values = _in_order(stamps, values, first, last)
        found: list[tuple[int, float]] = []
        sign, best = (-1 if is_low(name) else 1), -math.inf
        # From the newest to the oldest, because most of a hundred readings are outdone by a later one and cost nothing more.
        for stamp, value in zip(reversed(stamps), reversed(values), strict=True):
            if sign * value > best and value * factor <= most:
                best = sign * value
                found.append((now_ns - max(0, now_us - stamp) * 1000, round(value * factor, 6)))
        if stamps:
            since.value = stamps[-1]
        self._report.add_extremes(name, found[::-1])


def _in_order(stamps: list[int], values: list[int], first: int, last: int) -> tuple[list[int], list[int]]:
    """The readings behind `first` that are neither of the future nor older than the one before them."""
    kept_stamps, kept_values = [], []
    for stamp, value in zip(stamps, values, strict=True):
        if first < stamp <= last:
            first = stamp
            kept_stamps.append(stamp)
            kept_values.append(value)
    return kept_stamps, kept_values
