"""What a device is asked, how often, and under which name the answer is known: data, no code that touches the driver.

Speeds follow each call's cost on an H100 under load (p50): memory 6.7 us; utilization, power, clock-event reasons, clocks and
temperatures 1 us; energy 2.7 ms and process utilization 1.7 ms; BAR1, MIG mode and the PCIe replay counter 0.14 ms.
nvmlDeviceGetPcieThroughput is never asked: it watches the bus for 20 ms and holds the caller for as long.

A name is `metric` or `metric;label=value`, the contract's name without the prefix gpuwatch_gpu_.
"""

from __future__ import annotations

# A getter: (name, symbol, arguments between handle and result, C type of the result, factor to the unit of the name). "u32 and
# period": a second number follows the result, the time that the driver averaged over.
Getter = tuple[str, str, tuple[int, ...], str, float]

#: Every second: what changes fast, but only the latest is of interest.
GAUGES: tuple[Getter, ...] = (
    ("temperature_celsius;sensor=core", "nvmlDeviceGetTemperature", (0,), "u32", 1.0),
    ("clock_hertz;domain=graphics", "nvmlDeviceGetClockInfo", (0,), "u32", 1e6),
    ("clock_hertz;domain=sm", "nvmlDeviceGetClockInfo", (1,), "u32", 1e6),
    ("clock_hertz;domain=memory", "nvmlDeviceGetClockInfo", (2,), "u32", 1e6),
    ("clock_hertz;domain=video", "nvmlDeviceGetClockInfo", (3,), "u32", 1e6),
    ("performance_state", "nvmlDeviceGetPerformanceState", (), "u32", 1.0),
    ("power_limit_watts", "nvmlDeviceGetEnforcedPowerLimit", (), "u32", 1e-3),
    ("encoder_utilization_ratio", "nvmlDeviceGetEncoderUtilization", (), "u32 and period", 1e-2),
    ("decoder_utilization_ratio", "nvmlDeviceGetDecoderUtilization", (), "u32 and period", 1e-2),
)

#: Every ten seconds: limits, links, wear.
SLOW: tuple[Getter, ...] = (
    ("ecc_errors_total;severity=corrected;lifetime=volatile", "nvmlDeviceGetTotalEccErrors", (0, 0), "u64", 1.0),
    ("ecc_errors_total;severity=corrected;lifetime=aggregate", "nvmlDeviceGetTotalEccErrors", (0, 1), "u64", 1.0),
    ("ecc_errors_total;severity=uncorrected;lifetime=volatile", "nvmlDeviceGetTotalEccErrors", (1, 0), "u64", 1.0),
    ("ecc_errors_total;severity=uncorrected;lifetime=aggregate", "nvmlDeviceGetTotalEccErrors", (1, 1), "u64", 1.0),
    ("pcie_link_generation", "nvmlDeviceGetCurrPcieLinkGeneration", (), "u32", 1.0),
    ("pcie_link_width_lanes", "nvmlDeviceGetCurrPcieLinkWidth", (), "u32", 1.0),
    ("pcie_replays_total", "nvmlDeviceGetPcieReplayCounter", (), "u32", 1.0),
)

#: Once for each binding of a device: what it is, not how it does.
ONCE: tuple[Getter, ...] = (
    ("clock_max_hertz;domain=graphics", "nvmlDeviceGetMaxClockInfo", (0,), "u32", 1e6),
    ("clock_max_hertz;domain=sm", "nvmlDeviceGetMaxClockInfo", (1,), "u32", 1e6),
    ("clock_max_hertz;domain=memory", "nvmlDeviceGetMaxClockInfo", (2,), "u32", 1e6),
    ("clock_max_hertz;domain=video", "nvmlDeviceGetMaxClockInfo", (3,), "u32", 1e6),
    ("temperature_threshold_celsius;threshold=shutdown", "nvmlDeviceGetTemperatureThreshold", (0,), "u32", 1.0),
    ("temperature_threshold_celsius;threshold=slowdown", "nvmlDeviceGetTemperatureThreshold", (1,), "u32", 1.0),
    ("temperature_threshold_celsius;threshold=memory_max", "nvmlDeviceGetTemperatureThreshold", (2,), "u32", 1.0),
    ("temperature_threshold_celsius;threshold=gpu_max", "nvmlDeviceGetTemperatureThreshold", (3,), "u32", 1.0),
)

ENERGY: Getter = ("energy_joules_total", "nvmlDeviceGetTotalEnergyConsumption", (), "u64", 1e-3)

# A field of nvmlDeviceGetFieldValues: (name, field id, scope, factor). Scope 0xFFFFFFFF: all links together.
Field = tuple[str, int, int, float]

_ALL_LINKS = 0xFFFFFFFF

#: Every second. The PCIe byte counters (0.16 ms each) are 32 bits wide on an H100 and wrap after 4.3 GB.
FIELDS: tuple[Field, ...] = (
    ("pcie_transmit_bytes_total", 197, 0, 1.0),
    ("pcie_receive_bytes_total", 198, 0, 1.0),
    ("nvlink_transmit_bytes_total", 138, _ALL_LINKS, 1024.0),
    ("nvlink_receive_bytes_total", 139, _ALL_LINKS, 1024.0),
    ("temperature_celsius;sensor=memory", 82, 0, 1.0),
)

#: Every ten seconds.
SLOW_FIELDS: tuple[Field, ...] = (
    ("throttled_seconds_total;reason=power_cap", 74, 0, 1e-9),
    ("throttled_seconds_total;reason=sync_boost", 76, 0, 1e-9),
    ("throttled_seconds_total;reason=board_limit", 77, 0, 1e-9),
    ("throttled_seconds_total;reason=reliability", 79, 0, 1e-9),
    ("throttled_seconds_total;reason=software_thermal", 269, 0, 1e-9),
    ("throttled_seconds_total;reason=hardware_thermal", 270, 0, 1e-9),
    ("throttled_seconds_total;reason=hardware_power_brake", 271, 0, 1e-9),
    ("remapped_rows;cause=correctable", 142, 0, 1.0),
    ("remapped_rows;cause=uncorrectable", 143, 0, 1.0),
    ("row_remap_pending", 144, 0, 1.0),
    ("row_remap_failure", 145, 0, 1.0),
)

#: All thermal reasons together, for drivers that do not tell them apart.
THERMAL_FIELD: Field = ("throttled_seconds_total;reason=thermal", 75, 0, 1e-9)

#: Bits of the clock-event reasons that mean slower than asked for; idle (bit 0) and set clocks (bit 1) are no throttling.
THROTTLE_BITS: tuple[tuple[str, int], ...] = (
    ("throttle_active;reason=power_cap", 1 << 2),
    ("throttle_active;reason=hardware_slowdown", 1 << 3),
    ("throttle_active;reason=sync_boost", 1 << 4),
    ("throttle_active;reason=software_thermal", 1 << 5),
    ("throttle_active;reason=hardware_thermal", 1 << 6),
    ("throttle_active;reason=hardware_power_brake", 1 << 7),
)
