"""One GPU or MIG device: everything that it is asked, bound to its handle, and the report that the answers go into."""

from __future__ import annotations

from ctypes import byref, c_uint, c_ulonglong

import pynvml

from gpuwatch.samplers import catalog, nvml_rings
from gpuwatch.samplers.device_report import DeviceReport
from gpuwatch.samplers.nvml_fields import Fields
from gpuwatch.samplers.nvml_getters import Getters
from gpuwatch.samplers.nvml_gpm import Gpm
from gpuwatch.samplers.nvml_process_lists import ProcessLists
from gpuwatch.samplers.nvml_rings import Rings
from gpuwatch.samplers.sampling_loop import DeviceGoneError

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would cost this process a megabyte
    from typing import Any

    from gpuwatch.samplers.nvml_driver import Driver


class Device:
    """`number`: of a MIG device of `parent`. Making one raises pynvml.NVMLError and DeviceGoneError."""

    def __init__(self, driver: Driver, handle: Any, index: int, parent: Device | None = None, number: int = 0) -> None:
        self.index = index
        self.label = f"{index}:{number}" if parent else str(index)
        self.uuid = str(pynvml.nvmlDeviceGetUUID(handle))
        self.report = DeviceReport()
        self.introduced = False  # whether the parent has heard `info`
        self._driver, self._handle = driver, handle
        self._is_cut_up = False  # in MIG mode: processes and use belong to its MIG devices
        name = str(pynvml.nvmlDeviceGetName(handle))
        self.info: dict[str, str] = {
            "uuid": self.uuid,
            "name": name,
            "pci_bus_id": parent.info["pci_bus_id"] if parent else str(pynvml.nvmlDeviceGetPciInfo(handle).busId),
            "driver_version": driver.version,
            "mig_profile": name.rpartition("MIG ")[2] if parent else "",
        }
        # Version 2 of the memory structure tells reserved memory apart; version 1 (before R510) counts it as used.
        self._memory_call = driver.function("nvmlDeviceGetMemoryInfo_v2")
        self._memory: Any = (c_ulonglong * 5)(pynvml.nvmlMemory_v2)
        self._memory_names: tuple[str, ...] = (
            "",
            "memory_size_bytes",
            "memory_reserved_bytes",
            "memory_free_bytes",
            "memory_used_bytes",
        )
        if self._memory_call is None:
            self._memory_call = driver.function("nvmlDeviceGetMemoryInfo")
            self._memory = (c_ulonglong * 3)()
            self._memory_names = ("memory_size_bytes", "memory_free_bytes", "memory_used_bytes")
        self._memory_used, self._memory_size = len(self._memory_names) - 1, self._memory_names.index("memory_size_bytes")
        self._utilization = (c_uint * 2)()
        self._utilization_call = driver.function("nvmlDeviceGetUtilizationRates")
        reasons = "nvmlDeviceGetCurrentClocksEventReasons"  # called ..ThrottleReasons before R535
        if driver.function(reasons) is None:
            reasons = "nvmlDeviceGetCurrentClocksThrottleReasons"
        self._power = self._getters(("power_watts", "nvmlDeviceGetPowerUsage", (), "u32", 1e-3))
        self._throttle = self._getters(("throttle", reasons, (), "u64", 1))
        self._gauges = self._getters(*catalog.GAUGES, *self._fans())
        self._energy = self._getters(catalog.ENERGY)
        self._slow = self._getters(*catalog.SLOW)
        self._bar1_call = driver.function("nvmlDeviceGetBAR1MemoryInfo")
        self._fields = Fields(driver, handle, self.report, catalog.FIELDS)
        self._slow_fields = Fields(driver, handle, self.report, catalog.SLOW_FIELDS)
        self._thermal_field: Fields | None = None
        self._processes = ProcessLists(driver, handle)
        self._quick_rings = Rings(driver, handle, self.report, nvml_rings.QUICK)
        self._steady_rings = Rings(driver, handle, self.report, nvml_rings.STEADY)
        self._gpm = self._gpm_of(parent)
        self._getters(*catalog.ONCE).read()

    def mig_handles(self) -> list[tuple[int, Any, str]]:
        """(number, handle, UUID) of each MIG device that this GPU is cut into now."""
        handles = []
        try:
            self._is_cut_up = bool(pynvml.nvmlDeviceGetMigMode(self._handle)[0])
            for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(self._handle) if self._is_cut_up else 0):
                try:
                    handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(self._handle, number)
                except pynvml.NVMLError_NotFound:  # numbers may have gaps
                    continue
                handles.append((number, handle, str(pynvml.nvmlDeviceGetUUID(handle))))
        except pynvml.NVMLError as error:
            self._driver.failed("nvmlDeviceGetMigMode", error.value)
        return handles

    def close(self) -> None:
        """Gives back what the driver's library holds for us."""
        if self._gpm is not None:
            self._gpm.close()

    def read_memory(self) -> None:
        """Used memory, and its peak; asked up to a hundred times a second."""
        if self._memory_call is not None:
            code = self._memory_call(self._handle, self._memory)
            if code == 0:
                used = self._memory[self._memory_used]
                report = self.report
                report.gauges["memory_used_bytes"] = used
                if used > report.memory_peak_bytes:  # noqa: PLR1730  # a call less, a hundred times a second
                    report.memory_peak_bytes = used
            elif self._driver.failed("nvmlDeviceGetMemoryInfo", code):
                self._memory_call = None
            else:  # a GPU that fell off the bus may answer Unknown Error to everything, and this one never fails otherwise
                raise DeviceGoneError(f"its memory cannot be read: {pynvml.NVMLError(code)}")

    def read_fast(self, seconds: float, now_ns: int) -> None:
        """Utilization (standing for the last `seconds`), power and throttling; the bytes of a bus that is busy."""
        if self._utilization_call is not None:
            code = self._utilization_call(self._handle, self._utilization)
            if code != 0:
                if self._driver.failed("nvmlDeviceGetUtilizationRates", code):
                    self._utilization_call = None
            else:
                busy, bandwidth = self._utilization
                if busy <= 100 and bandwidth <= 100:
                    self.report.add_utilization(busy / 100, bandwidth / 100, seconds)
        for _, value in self._power.answers():
            self.report.add_power(value)
        for _, value in self._throttle.answers():
            self.report.add_throttle_bits(int(value))
        if now_ns < self._fields.busy_until_ns:
            self._fields.read(now_ns)

    def read_gauges(self, now_ns: int) -> None:
        """Temperatures, clocks, the counters of the chip's activity and those of the buses."""
        self._gauges.read()
        if self._memory_call is not None:
            for name, value in zip(self._memory_names, self._memory, strict=True):
                if name:
                    self.report.gauges[name] = value
        self._fields.read(now_ns)
        if self._gpm is not None:
            self._gpm.read(now_ns)

    def read_energy(self) -> None:
        """The energy counter (2.7 ms), and the driver's own record of the power since the last time."""
        self._energy.read()
        self._quick_rings.read()

    def read_slow(self, now_ns: int) -> None:
        """Limits, links and error counters."""
        self._slow.read()
        self._slow_fields.read(now_ns)
        if self._thermal_field is None:
            told_apart = self._slow_fields.has("throttled_seconds_total;reason=hardware_thermal")
            wanted = () if told_apart else (catalog.THERMAL_FIELD,)
            self._thermal_field = Fields(self._driver, self._handle, self.report, wanted)
        self._thermal_field.read(now_ns)
        if self._bar1_call is not None:
            bar1 = pynvml.c_nvmlBAR1Memory_t()
            code = self._bar1_call(self._handle, byref(bar1))
            if code == 0:
                self.report.gauges["bar1_memory_used_bytes"] = bar1.bar1Used
            elif self._driver.failed("nvmlDeviceGetBAR1MemoryInfo", code):
                self._bar1_call = None

    def read_rings(self) -> None:
        """The driver's own record of utilization and clocks; to be read every nvml_rings.STEADY_SECONDS."""
        self._steady_rings.read()

    def read_processes(self, *, with_utilization: bool) -> None:
        """Who is on the device, with how much memory, and (dear) how busy each keeps it."""
        if self._is_cut_up:
            return
        total_bytes = int(self._memory[self._memory_size]) or 2**64
        rows = self.report.processes = self._processes.rows(total_bytes, with_utilization=with_utilization)
        known = [used for _, _, used, _ in rows if used is not None]
        if self._memory_call is not None and len(known) == len(rows):
            self.report.gauges["memory_unattributed_bytes"] = max(0, self._memory[self._memory_used] - sum(known))

    def _getters(self, *getters: catalog.Getter) -> Getters:
        return Getters(self._driver, self._handle, self.report, getters)

    def _fans(self) -> list[catalog.Getter]:
        try:
            count = int(pynvml.nvmlDeviceGetNumFans(self._handle))
        except pynvml.NVMLError as error:
            self._driver.failed("nvmlDeviceGetNumFans", error.value)
            count = 0
        return [(f"fan_speed_ratio;fan={fan}", "nvmlDeviceGetFanSpeed_v2", (fan,), "u32", 1e-2) for fan in range(count)]

    def _gpm_of(self, parent: Device | None) -> Gpm | None:
        if not self._driver.gpm:
            return None
        if parent is None:
            return Gpm(self._driver, self._handle, self.report)
        try:
            instance = int(pynvml.nvmlDeviceGetGpuInstanceId(self._handle))
        except pynvml.NVMLError as error:
            self._driver.failed("nvmlDeviceGetGpuInstanceId", error.value)
            return None
        return Gpm(self._driver, parent._handle, self.report, instance)  # noqa: SLF001  # one of our own class
