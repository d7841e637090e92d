"""GPM, on Hopper and newer: how much of the chip worked between two samples of its counters.

`utilization` says that some kernel ran; these say how many multiprocessors had work, how full they were, and whether the
tensor cores and the memory took part. A sample costs 55 us (81 us of processor time); the difference of two is arithmetic.
"""

from __future__ import annotations

from ctypes import byref, c_uint

import pynvml

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would cost this process a megabyte
    from typing import Any

    from gpuwatch.samplers.device_report import DeviceReport
    from gpuwatch.samplers.nvml_driver import Driver

METRICS = (
    ("sm_active_ratio", pynvml.NVML_GPM_METRIC_SM_UTIL),
    ("sm_occupancy_ratio", pynvml.NVML_GPM_METRIC_SM_OCCUPANCY),
    ("tensor_active_ratio", pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL),
    ("dram_active_ratio", pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL),
)
SHORTEST_NS = 100_000_000  # between two samples; a difference over less is noise
_MOST_PERCENT = 105.0  # a little beyond 100 is rounding, much beyond is garbage


class Gpm:
    """One device's counters. `read` is to be called about once a second; the first call has nothing to compare with."""

    def __init__(self, driver: Driver, handle: Any, report: DeviceReport, instance: int | None = None) -> None:
        """`instance`: the GPU instance of a MIG device, whose samples are asked of the whole GPU's `handle`."""
        self._driver, self._report = driver, report
        self._samples: list[Any] = []  # the last one, and the place for the next
        self._last_ns = 0  # of the last sample; 0: none
        self._call = "nvmlGpmSampleGet" if instance is None else "nvmlGpmMigSampleGet"
        self._get = driver.function(self._call)
        self._arguments = (handle,) if instance is None else (handle, c_uint(instance))
        try:
            if self._get is not None and pynvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
                self._samples = [pynvml.nvmlGpmSampleAlloc(), pynvml.nvmlGpmSampleAlloc()]
        except pynvml.NVMLError as error:
            driver.failed("nvmlGpmQueryDeviceSupport", error.value)

    def read(self, now_ns: int) -> None:
        """Takes a sample and reports what went on since the last one. Raises DeviceGoneError, DriverGoneError."""
        if not self._samples or now_ns - self._last_ns < SHORTEST_NS:
            return
        code = self._get(*self._arguments, self._samples[1])
        if code != 0:
            if self._driver.failed(self._call, code):
                self.close()
            else:  # somebody else may have the counters for a while, such as a profiler
                self._last_ns = 0
                for name, _ in METRICS:
                    self._report.drop(name)
            return
        if self._last_ns:
            self._compare()
        self._samples.reverse()
        self._last_ns = now_ns

    def close(self) -> None:
        """Gives the samples back; the library keeps them otherwise for as long as the process lives."""
        for sample in self._samples:
            try:
                pynvml.nvmlGpmSampleFree(sample)
            except pynvml.NVMLError as error:
                self._driver.count_error("nvmlGpmSampleFree", str(error.value))
        self._samples = []

    def _compare(self) -> None:
        request = _request()
        request.sample1, request.sample2 = self._samples
        code = pynvml.nvmlLib.nvmlGpmMetricsGet(byref(request))
        if code != 0:
            if self._driver.failed("nvmlGpmMetricsGet", code):
                self.close()
            return
        for (name, _), metric in zip(METRICS, request.metrics, strict=False):
            if metric.nvmlReturn == 0 and 0.0 <= metric.value <= _MOST_PERCENT:  # a NaN is neither
                self._report.put(name, round(min(metric.value, 100.0) / 100, 5))
            else:
                self._report.drop(name)


_requests: list[Any] = []


def _request() -> Any:
    """The one structure of 17 kB in which all devices ask, one after another."""
    if not _requests:
        request = pynvml.c_nvmlGpmMetricsGet_t()
        request.version, request.numMetrics = pynvml.NVML_GPM_METRICS_GET_VERSION, len(METRICS)
        for place, (_, metric) in enumerate(METRICS):
            request.metrics[place].metricId = metric
        _requests.append(request)
    return _requests[0]
