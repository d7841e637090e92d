"""The child process that asks the NVIDIA driver, through pynvml: the only file that touches NVML.

A driver call may sleep in the kernel for ever, so it must not happen in the daemon: this process asks, folds what it hears and
writes one JSON line a second (sampling_loop.py); the parent (supervisor.py) reads the lines, watches the heartbeat and restarts
what hangs. Getters are called through the library that pynvml loaded, with results allocated once: 0.3 us a call instead of
0.7 to 15 us. An unsupported value costs one call and is left out from then on.

    python -m gpuwatch.samplers.nvml_worker OPTIONS      as JSON: see sampling_loop.SamplingLoop
    python -m gpuwatch.samplers.nvml_worker --probe      prints what is there, and ends
"""

from __future__ import annotations

import json
import struct
import sys
import time
from ctypes import byref, c_uint, c_ulonglong, create_string_buffer

import pynvml

from gpuwatch.samplers import catalog
from gpuwatch.samplers.device_report import DeviceReport
from gpuwatch.samplers.nvml_processes import MAX_ROW_BYTES, UTILIZATION_BYTES, ProcessLists, busy_ratios
from gpuwatch.samplers.sampling_loop import DeviceGoneError, DriverGoneError, run

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would cost this process a megabyte
    from collections.abc import Iterable
    from typing import Any

# Answers that will not change: the getter is dropped for this device.
_ABSENT = {
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_VGPU_ECC_NOT_SUPPORTED,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    pynvml.NVML_ERROR_DEPRECATED,
}
_NOTHING_YET = {pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_NO_DATA, pynvml.NVML_ERROR_NOT_READY}
_DEVICE_GONE = {pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_GPU_NOT_FOUND}
_DRIVER_GONE = {pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_DRIVER_NOT_LOADED}
# The library that this process has mapped will never fit the driver: only a new process can load another one.
_NEEDS_NEW_PROCESS = {pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH}
_CODES = {value: name[11:].lower() for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_")}

_NO_VALUE = {c_uint: 2**32 - 1, c_ulonglong: 2**64 - 1}  # what NVML writes where it has none
# nvmlFieldValue_t: id, scope, timestamp, latency, value type, return code, value. An attribute of pynvml's own costs 2 us.
_FIELD = struct.Struct("<IIqqii8s")
_FIELD_VALUES = tuple(struct.Struct(f"<{letter}") for letter in "dIQQqiH")  # by value type
_UNSIGNED_INT = 1
_BUSY_BUS_BYTES_PER_SECOND = 1 << 30  # beyond this, counters of 32 bits are read ten times as often: they wrap after 4.3 GB
_MAX_LISTED = 4096  # processes on one device: a longer list is garbage


class Driver:
    """An initialised NVML; making one raises DriverGoneError when there is none."""

    def __init__(self) -> None:
        self.errors: dict[str, int] = {}  # "call|code" -> times since the last line
        try:
            pynvml.nvmlInit()
            self.version = str(pynvml.nvmlSystemGetDriverVersion())
        except pynvml.NVMLError as error:
            raise DriverGoneError(_code(error), str(error), needs_new_process=error.value in _NEEDS_NEW_PROCESS) from None
        early_r535 = self.function("nvmlDeviceGetConfComputeMemSizeInfo") and not self.function(
            "nvmlDeviceGetRunningProcessDetailList"
        )
        self.lists = ProcessLists(32 if early_r535 else 24)

    def function(self, symbol: str) -> Any:
        """The library's function, or None when this driver is too old to have it."""
        return getattr(pynvml.nvmlLib, symbol, None)

    def failed(self, call: str, code: int) -> bool:
        """Judges an answer other than success: True when it will never be another one. Raises when somebody is gone."""
        if code in _ABSENT:
            return True
        if code not in _NOTHING_YET:
            self.errors[f"{call}|{_CODES.get(code, code)}"] = self.errors.get(f"{call}|{_CODES.get(code, code)}", 0) + 1
            sentence = str(pynvml.NVMLError(code))
            if code in _DEVICE_GONE:
                raise DeviceGoneError(sentence)
            if code in _DRIVER_GONE or code in _NEEDS_NEW_PROCESS:
                raise DriverGoneError(_CODES[code], sentence, needs_new_process=code in _NEEDS_NEW_PROCESS)
        return False

    def count(self) -> int:
        """How many GPUs there are; this touches none of them."""
        try:
            return int(pynvml.nvmlDeviceGetCount())
        except pynvml.NVMLError as error:
            self.failed("nvmlDeviceGetCount", error.value)
            raise DriverGoneError(_code(error), str(error), needs_new_process=False) from None

    def open(self, index: int) -> list[Device]:
        """The GPU with this index and its MIG devices. Raises DeviceGoneError when it does not answer."""
        try:
            gpu = Device(self, pynvml.nvmlDeviceGetHandleByIndex(index), index)
            migs = [Device(self, handle, index, gpu, number) for number, handle, _ in gpu.mig_handles()]
        except pynvml.NVMLError as error:
            self.failed("nvmlDeviceGetHandleByIndex", error.value)
            raise DeviceGoneError(str(error)) from None
        return [gpu, *migs]

    def close(self) -> None:
        """Lets go of the driver."""
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            return  # a driver that went away has nothing to shut down


class Device:
    """One GPU or MIG device: its getters bound to its handle, and the report that they fill."""

    def __init__(self, driver: Driver, handle: Any, index: int, parent: Device | None = None, number: int = 0) -> None:
        self.index = index
        self.label = f"{index}:{number}" if parent else str(index)
        self.uuid = str(pynvml.nvmlDeviceGetUUID(handle))
        self.report = DeviceReport()
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
        self._power = self._getters([("power_watts", "nvmlDeviceGetPowerUsage", (), "u32", 1e-3)])
        reasons = "nvmlDeviceGetCurrentClocksEventReasons"  # called ..ThrottleReasons before R535
        if driver.function(reasons) is None:
            reasons = "nvmlDeviceGetCurrentClocksThrottleReasons"
        self._throttle = self._getters([("throttle", reasons, (), "u64", 1)])
        self._gauges = self._getters([*catalog.GAUGES, *self._fans()])
        self._energy = self._getters([catalog.ENERGY])
        self._slow = self._getters(catalog.SLOW)
        self._bar1_call = driver.function("nvmlDeviceGetBAR1MemoryInfo")
        self._fields, self._slow_fields = self._field_array(catalog.FIELDS), self._field_array(catalog.SLOW_FIELDS)
        self._bytes_last: dict[str, tuple[int, int]] = {}  # name -> (when in ns, raw value)
        self._field_call = driver.function("nvmlDeviceGetFieldValues")
        self.bus_busy_until_ns = 0
        self.introduced = False  # whether the parent has heard `info`
        self._list_calls = [
            (symbol, function, kind)
            for listed, kind in (("Compute", "compute"), ("MPSCompute", "compute"), ("Graphics", "graphics"))
            for symbol, function in [self._newest(f"nvmlDeviceGet{listed}RunningProcesses")]
            if function is not None
        ]
        self._list_buffer = create_string_buffer(MAX_ROW_BYTES * 64)
        self._busy_call = driver.function("nvmlDeviceGetProcessUtilization")
        self._busy_since_us = time.time_ns() // 1000 - 1_000_000
        self._busy_ratios: dict[int, float] | None = None  # None: not asked yet, or never answered
        self._read(self._getters(catalog.ONCE))

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

    def read_fast(self, seconds: float) -> None:
        """Utilization (standing for the last `seconds`), power and throttling."""
        if self._utilization_call is not None:
            code = self._utilization_call(self._handle, self._utilization)
            if code != 0:
                if self._driver.failed("nvmlDeviceGetUtilizationRates", code):
                    self._utilization_call = None
            elif max(self._utilization) <= 100:
                self.report.add_utilization(self._utilization[0] / 100, self._utilization[1] / 100, seconds)
        for _, value in self._answers(self._power):
            self.report.add_power(value)
        for _, value in self._answers(self._throttle):
            self.report.add_throttle_bits(int(value))

    def read_gauges(self, now_ns: int) -> None:
        """Temperatures, clocks and the byte counters of the buses."""
        self._read(self._gauges)
        if self._memory_call is not None:
            for name, value in zip(self._memory_names, self._memory, strict=True):
                if name:
                    self.report.gauges[name] = value
        self.read_buses(now_ns)

    def read_buses(self, now_ns: int) -> None:
        self._fields = self._read_fields(self._fields, now_ns)

    def read_energy(self) -> None:
        self._read(self._energy)

    def read_slow(self, now_ns: int) -> None:
        """Limits, links and error counters."""
        self._read(self._slow)
        self._slow_fields = self._read_fields(self._slow_fields, now_ns)
        if self._bar1_call is not None:
            bar1 = pynvml.c_nvmlBAR1Memory_t()
            code = self._bar1_call(self._handle, byref(bar1))
            if code == 0:
                self.report.gauges["bar1_memory_used_bytes"] = bar1.bar1Used
            elif self._driver.failed("nvmlDeviceGetBAR1MemoryInfo", code):
                self._bar1_call = None

    def read_processes(self, *, with_utilization: bool) -> None:
        """Who is on the device, with how much memory, and (dear) how busy each keeps it."""
        if self._is_cut_up:
            return
        found: dict[int, tuple[int | None, str]] = {}
        for call in list(self._list_calls):
            rows = self._list(*call)
            if rows is None:
                self._list_calls.remove(call)
            for pid, used, kind in rows or ():
                if pid not in found:  # a process that computes and draws is in both lists
                    found[pid] = (used, kind)
        if with_utilization and self._busy_call is not None:
            self._read_busy(set(found))
        ratios = self._busy_ratios
        self.report.processes = [
            (pid, kind, used, None if ratios is None else ratios.get(pid, 0.0)) for pid, (used, kind) in found.items()
        ]
        known = [used for used, _ in found.values() if used is not None]
        if self._memory_call is not None and len(known) == len(found):
            self.report.gauges["memory_unattributed_bytes"] = max(0, self._memory[self._memory_used] - sum(known))

    def _list(self, symbol: str, function: Any, kind: str) -> list[tuple[int, int | None, str]] | None:
        """One list's rows; [] when this time there is none to believe; None when the device will never have one."""
        count = c_uint(len(self._list_buffer) // MAX_ROW_BYTES)
        code = function(self._handle, byref(count), self._list_buffer)
        if code == pynvml.NVML_ERROR_INSUFFICIENT_SIZE and count.value <= _MAX_LISTED:
            self._list_buffer = create_string_buffer(MAX_ROW_BYTES * 2 * count.value)
            count = c_uint(2 * count.value)
            code = function(self._handle, byref(count), self._list_buffer)
        if code != 0:
            return None if self._driver.failed(symbol, code) else []
        total_bytes = int(self._memory[self._memory_size]) or 2**64
        rows = self._driver.lists.rows(self._list_buffer.raw, count.value, kind, total_bytes)
        if rows is None:
            self._driver.errors[f"{symbol}|garbage"] = self._driver.errors.get(f"{symbol}|garbage", 0) + 1
        return rows or []

    def _read_busy(self, pids: set[int]) -> None:
        now_us = time.time_ns() // 1000
        if self._busy_since_us > now_us + 10_000_000:  # the wall clock went back
            self._busy_since_us = now_us
        count = c_uint(len(self._list_buffer) // UTILIZATION_BYTES)
        since = c_ulonglong(self._busy_since_us)
        code = self._busy_call(self._handle, self._list_buffer, byref(count), since)
        if code == pynvml.NVML_ERROR_INSUFFICIENT_SIZE and count.value <= _MAX_LISTED:
            self._list_buffer = create_string_buffer(MAX_ROW_BYTES * 2 * count.value)
            code = self._busy_call(self._handle, self._list_buffer, byref(count), since)
        if code == 0:
            self._busy_ratios, self._busy_since_us = busy_ratios(
                self._list_buffer.raw, count.value, self._busy_since_us, now_us, pids
            )
        elif code == pynvml.NVML_ERROR_NOT_FOUND:
            self._busy_ratios = {}  # nobody was busy
        elif self._driver.failed("nvmlDeviceGetProcessUtilization", code):
            self._busy_call = self._busy_ratios = None

    def _newest(self, name: str) -> tuple[str, Any]:
        for symbol in (f"{name}_v3", f"{name}_v2"):
            function = self._driver.function(symbol)
            if function is not None:
                return symbol, function
        return name, None

    def _fans(self) -> list[catalog.Getter]:
        try:
            count = int(pynvml.nvmlDeviceGetNumFans(self._handle))
        except pynvml.NVMLError as error:
            self._driver.failed("nvmlDeviceGetNumFans", error.value)
            count = 0
        return [(f"fan_speed_ratio;fan={fan}", "nvmlDeviceGetFanSpeed_v2", (fan,), "u32", 1e-2) for fan in range(count)]

    def _getters(self, getters: Iterable[catalog.Getter]) -> list[tuple[Any, ...]]:
        """The getters that this driver has, as (name, symbol, function, its arguments, the result's place, factor)."""
        bound = []
        for name, symbol, arguments, kind, factor in getters:
            function = self._driver.function(symbol)
            if function is not None:
                place = c_uint() if kind == "u32" else c_ulonglong()
                whole = (self._handle, *(c_uint(argument) for argument in arguments), byref(place))
                bound.append((name, symbol, function, whole, place, factor))
        return bound

    def _answers(self, getters: list[tuple[Any, ...]]) -> list[tuple[str, float]]:
        """What the getters say now; those that will never say anything leave the list."""
        answers, absent = [], []
        for getter in getters:
            name, symbol, function, arguments, place, factor = getter
            code = function(*arguments)
            if code == 0:
                if place.value != _NO_VALUE[type(place)]:
                    answers.append((name, place.value * factor))
            elif self._driver.failed(symbol, code):
                absent.append(getter)
            else:
                self.report.drop(name)
        for getter in absent:
            getters.remove(getter)
        return answers

    def _read(self, getters: list[tuple[Any, ...]]) -> None:
        for name, value in self._answers(getters):
            self.report.put(name, value)

    def _field_array(self, fields: Iterable[catalog.Field]) -> tuple[Any, tuple[catalog.Field, ...]]:
        fields = tuple(fields)
        array = create_string_buffer(_FIELD.size * len(fields))
        for place, (_, field_id, scope, _) in enumerate(fields):
            _FIELD.pack_into(array, place * _FIELD.size, field_id, scope, 0, 0, 0, 0, b"")
        return array, fields

    def _read_fields(self, bound: Any, now_ns: int) -> Any:
        """Reads the fields in one call; returns them without those that this device will never have."""
        array, fields = bound
        if not fields or self._field_call is None:
            return bound
        code = self._field_call(self._handle, len(fields), array)
        if code != 0:
            return self._field_array(()) if self._driver.failed("nvmlDeviceGetFieldValues", code) else bound
        absent = []
        for field, answer in zip(fields, _FIELD.iter_unpack(array), strict=False):
            name, _, _, factor = field
            value_type, code, raw = answer[4:]
            if code == 0:
                layout = _FIELD_VALUES[value_type]
                (value,) = layout.unpack_from(raw)
                if name.endswith("_bytes_total"):
                    self._count_bytes(name, value, factor, value_type == _UNSIGNED_INT, now_ns)
                elif value != 2**64 - 1:
                    self.report.put(name, value * factor)
            elif self._driver.failed("nvmlDeviceGetFieldValues", code):
                absent.append(field)
            else:
                self.report.drop(name)
        return self._field_array(field for field in fields if field not in absent) if absent else bound

    def _count_bytes(self, name: str, value: int, factor: float, wraps: bool, now_ns: int) -> None:
        last_ns, last = self._bytes_last.get(name, (now_ns, value))
        self._bytes_last[name] = (now_ns, value)
        moved = (value - last) % 2**32 if wraps else max(0, value - last)
        self.report.increment(name, moved * factor)
        if wraps and moved * 1e9 > _BUSY_BUS_BYTES_PER_SECOND * (now_ns - last_ns):
            self.bus_busy_until_ns = now_ns + 5_000_000_000


def _code(error: Any) -> str:
    return str(_CODES.get(error.value, error.value))


def probe() -> dict[str, object]:
    """What `gpuwatch doctor` asks: {"driver_version", "gpus": names}, or {"error": one sentence}."""
    try:
        driver = Driver()
        names = []
        for index in range(driver.count()):
            try:
                names.append(driver.open(index)[0].info["name"])
            except DeviceGoneError as gone:
                names.append(f"GPU {index}: {gone}")
    except DriverGoneError as gone:
        return {"error": str(gone)}
    return {"driver_version": driver.version, "gpus": names}


if __name__ == "__main__":
    if sys.argv[1:] == ["--probe"]:
        print(json.dumps(probe()))
    else:
        run(Driver, sys.argv[1])
