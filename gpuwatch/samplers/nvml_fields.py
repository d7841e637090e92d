"""nvmlDeviceGetFieldValues: many numbers in one call, each with a return code of its own."""

from __future__ import annotations

import struct
from ctypes import create_string_buffer

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would cost this process a megabyte
    from collections.abc import Iterable
    from typing import Any

    from gpuwatch.samplers.catalog import Field
    from gpuwatch.samplers.device_report import DeviceReport
    from gpuwatch.samplers.nvml_driver import Driver

# nvmlFieldValue_t: id, scope, timestamp, latency, value type, return code, value. An attribute of pynvml's own costs 2 us.
_FIELD = struct.Struct("<IIqqii8s")
_VALUES = tuple(struct.Struct(f"<{letter}") for letter in "dIQQqiH")  # by value type
_UNSIGNED_INT = 1
_CALL = "nvmlDeviceGetFieldValues"
_BUSY_BYTES_PER_SECOND = 1 << 30  # beyond this, counters of 32 bits are read ten times as often: they wrap after 4.3 GB
_BUSY_FOR_NS = 5_000_000_000


class Fields:
    """Some fields of one device, read in one call. Those that it will never have leave after the first answer."""

    def __init__(self, driver: Driver, handle: Any, report: DeviceReport, fields: Iterable[Field]) -> None:
        self._driver, self._handle, self._report = driver, handle, report
        self._call = driver.function(_CALL)
        self._bytes_last: dict[str, tuple[int, int]] = {}  # name -> (when in ns, raw value)
        self.busy_until_ns = 0  # a counter of 32 bits runs so fast that it wants to be read ten times a second
        self._bind(fields)

    def read(self, now_ns: int) -> None:
        """Puts what the fields say now into the report. Raises DeviceGoneError, DriverGoneError."""
        if not self._fields or self._call is None:
            return
        code = self._call(self._handle, len(self._fields), self._array)
        if code != 0:
            if self._driver.failed(_CALL, code):
                self._bind(())
            return
        absent = []
        for field, answer in zip(self._fields, _FIELD.iter_unpack(self._array), strict=False):
            name, _, _, factor = field
            value_type, code, raw = answer[4:]
            if code == 0:
                (value,) = _VALUES[value_type].unpack_from(raw)
                if name.endswith("_bytes_total"):
                    self._count_bytes(name, value, factor, value_type == _UNSIGNED_INT, now_ns)
                elif value != 2**64 - 1:
                    self._report.put(name, value * factor)
            elif self._driver.failed(_CALL, code):
                absent.append(field)
            else:
                self._report.drop(name)
        if absent:
            self._bind(field for field in self._fields if field not in absent)

    def has(self, name: str) -> bool:
        """Whether the device may have this field: it has not said that it never will."""
        return any(field[0] == name for field in self._fields)

    def _bind(self, fields: Iterable[Field]) -> None:
        self._fields = tuple(fields)
        self._array = create_string_buffer(_FIELD.size * len(self._fields))
        for place, (_, field_id, scope, _) in enumerate(self._fields):
            _FIELD.pack_into(self._array, place * _FIELD.size, field_id, scope, 0, 0, 0, 0, b"")

    def _count_bytes(self, name: str, value: int, factor: float, wraps: bool, now_ns: int) -> None:
        last_ns, last = self._bytes_last.get(name, (now_ns, value))
        self._bytes_last[name] = (now_ns, value)
        moved = (value - last) % 2**32 if wraps else max(0, value - last)
        self._report.increment(name, moved * factor)
        if wraps and moved * 1e9 > _BUSY_BYTES_PER_SECOND * (now_ns - last_ns):
            self.busy_until_ns = now_ns + _BUSY_FOR_NS
