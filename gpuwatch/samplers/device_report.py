"""What one device said since the last line: fast readings folded into means and peaks, and only what changed is sent."""

from __future__ import annotations

# pid, kind "compute" | "graphics", used bytes, (share of the SMs, of the memory's bandwidth, of the encoders, of the decoders)
ProcessRow = tuple[int, str, "int | None", "tuple[float, float, float, float] | None"]


class DeviceReport:
    """Collects a device's readings; names are catalog.py's, units the names' own."""

    def __init__(self) -> None:
        self.gauges: dict[str, float] = {}
        self.counters: dict[str, float] = {}  # kept by the driver
        self.increments: dict[str, float] = {}  # counted here since the last line
        self.memory_peak_bytes = -1
        self.processes: list[ProcessRow] | None = None  # None: not read since the last line
        self.extremes: dict[str, list[tuple[int, float]]] = {}  # name -> (CLOCK_MONOTONIC ns, value), from the driver's rings
        self._sent: dict[str, float] = {}
        self._fast_count = 0
        self._utilization_sum = self._bandwidth_sum = self._utilization_peak = self._bandwidth_peak = 0.0
        self._power_count = 0
        self._power_sum_watts = self._power_peak_watts = 0.0
        self._throttle_bits: int | None = None

    def add_utilization(self, busy_ratio: float, bandwidth_ratio: float, seconds: float) -> None:
        """One reading of how busy the GPU and its memory were, standing for the `seconds` since the one before."""
        self._fast_count += 1
        self._utilization_sum += busy_ratio
        self._bandwidth_sum += bandwidth_ratio
        self._utilization_peak = max(self._utilization_peak, busy_ratio)
        self._bandwidth_peak = max(self._bandwidth_peak, bandwidth_ratio)
        self.increment("busy_seconds_total", busy_ratio * seconds)

    def add_power(self, watts: float) -> None:
        self._power_count += 1
        self._power_sum_watts += watts
        self._power_peak_watts = max(self._power_peak_watts, watts)

    def add_extremes(self, name: str, readings: list[tuple[int, float]]) -> None:
        """The driver's own readings, (CLOCK_MONOTONIC ns, value) in order: kept are those that no later one outdoes."""
        kept = self.extremes.setdefault(name, [])
        sign = -1.0 if is_low(name) else 1.0
        for monotonic_ns, value in readings:
            while kept and sign * kept[-1][1] <= sign * value:
                kept.pop()
            kept.append((monotonic_ns, value))

    def add_throttle_bits(self, bits: int) -> None:
        """A reason that held at any reading since the last line counts as active."""
        self._throttle_bits = (self._throttle_bits or 0) | bits

    def put(self, name: str, value: float) -> None:
        """A reading as it is; names that end in _total are counters that the driver keeps."""
        is_counter = name.partition(";")[0].endswith("_total")
        (self.counters if is_counter else self.gauges)[name] = value

    def drop(self, name: str) -> None:
        """What cannot be read for now is no longer reported."""
        self.gauges.pop(name, None)

    def increment(self, name: str, by: float) -> None:
        self.increments[name] = self.increments.get(name, 0.0) + by

    def line(self, throttle_names: tuple[tuple[str, int], ...]) -> dict[str, object]:
        """The device's part of the line to the parent; begins the next stretch of readings."""
        line: dict[str, object] = {}
        peaks: dict[str, float] = {}
        if self._fast_count:
            self.gauges["utilization_ratio"] = round(self._utilization_sum / self._fast_count, 4)
            self.gauges["memory_bandwidth_utilization_ratio"] = round(self._bandwidth_sum / self._fast_count, 4)
            peaks["utilization_peak_ratio"] = self._utilization_peak
            peaks["memory_bandwidth_utilization_peak_ratio"] = self._bandwidth_peak
        if self._power_count:
            self.gauges["power_watts"] = round(self._power_sum_watts / self._power_count, 3)
            peaks["power_peak_watts"] = round(self._power_peak_watts, 3)
        if self._throttle_bits is not None:
            for name, bit in throttle_names:
                self.gauges[name] = float(bool(self._throttle_bits & bit))
        if self.memory_peak_bytes >= 0:
            peaks["memory_used_peak_bytes"] = self.memory_peak_bytes
        changed: dict[str, float | None] = {n: value for n, value in self.gauges.items() if self._sent.get(n) != value}
        changed.update(dict.fromkeys(self._sent.keys() - self.gauges.keys()))
        self._sent = dict(self.gauges)
        line["gauges"] = changed
        line["counters"] = self.counters
        line["increments"] = self.increments
        line["peaks"] = peaks
        if self.extremes:
            line["extremes"] = self.extremes
        if self.processes is not None:
            line["processes"] = self.processes
        self.counters, self.increments, self.extremes, self.processes = {}, {}, {}, None
        self.memory_peak_bytes = -1
        self._fast_count = self._power_count = 0
        self._utilization_sum = self._bandwidth_sum = self._utilization_peak = self._bandwidth_peak = 0.0
        self._power_sum_watts = self._power_peak_watts = 0.0
        self._throttle_bits = None
        return line


def is_low(name: str) -> bool:
    """Whether the extreme of this name is the smallest value of its window; otherwise it is the largest."""
    return "_low_" in name
