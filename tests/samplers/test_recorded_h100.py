"""What the sampler makes of a recorded H100: every value that it gave, under the contract's names, and nothing else."""

import os
import re
import time
from pathlib import Path

import pytest

from tests.fake_nvml.driver import H100_RESERVED_BYTES, H100_SERIES, H100_STATIC, h100, replay
from tests.fake_nvml.pynvml_process import PynvmlProcess

#: nvmlDeviceGet..: 20 ms and 69 ms a call on an H100; the device holds its caller for as long.
NEVER = {"nvmlDeviceGetPcieThroughput", "nvmlDeviceGetInforomConfigurationChecksum", "nvmlDeviceGetPerformanceModes"}

IDLE_H100 = {
    "temperature_celsius{sensor=core}": 44,
    "temperature_celsius{sensor=memory}": 46,
    "temperature_threshold_celsius{threshold=shutdown}": 95,
    "temperature_threshold_celsius{threshold=slowdown}": 89,
    "temperature_threshold_celsius{threshold=memory_max}": 95,
    "temperature_threshold_celsius{threshold=gpu_max}": 87,
    "clock_hertz{domain=graphics}": 900e6,
    "clock_hertz{domain=sm}": 900e6,
    "clock_hertz{domain=memory}": 2619e6,
    "clock_hertz{domain=video}": 870e6,
    "clock_max_hertz{domain=graphics}": 1980e6,
    "clock_max_hertz{domain=sm}": 1980e6,
    "clock_max_hertz{domain=memory}": 2619e6,
    "clock_max_hertz{domain=video}": 1545e6,
    "performance_state": 0,
    "power_watts": 79.004,
    "power_limit_watts": 700,
    "energy_joules_total": 2926.763,
    "memory_size_bytes": 85520809984,
    "memory_used_bytes": 0,
    "memory_free_bytes": 85017493504,
    "memory_reserved_bytes": 503316480,
    "memory_unattributed_bytes": 0,
    "memory_used_peak_bytes{window=10s}": 0,
    "memory_used_peak_bytes{window=60s}": 0,
    "memory_used_peak_bytes{window=300s}": 0,
    "bar1_memory_used_bytes": 1703936,
    "utilization_ratio": 0,
    "utilization_peak_ratio{window=10s}": 0,
    "utilization_peak_ratio{window=60s}": 0,
    "utilization_peak_ratio{window=300s}": 0,
    "memory_bandwidth_utilization_ratio": 0,
    "busy_seconds_total": 0,
    "encoder_utilization_ratio": 0,
    "decoder_utilization_ratio": 0,
    "sm_active_ratio": 0,
    "sm_occupancy_ratio": 0,
    "tensor_active_ratio": 0,
    "dram_active_ratio": 0,
    "ecc_errors_total{severity=corrected,lifetime=volatile}": 0,
    "ecc_errors_total{severity=corrected,lifetime=aggregate}": 0,
    "ecc_errors_total{severity=uncorrected,lifetime=volatile}": 0,
    "ecc_errors_total{severity=uncorrected,lifetime=aggregate}": 0,
    "remapped_rows{cause=correctable}": 0,
    "remapped_rows{cause=uncorrectable}": 0,
    "row_remap_pending": 0,
    "row_remap_failure": 0,
    "pcie_link_generation": 5,
    "pcie_link_width_lanes": 16,
    "pcie_replays_total": 0,
    "pcie_transmit_bytes_total": 0,
    "pcie_receive_bytes_total": 0,
    **dict.fromkeys(
        (
            f"throttle_active{{reason={reason}}}"
            for reason in (
                "power_cap", "hardware_slowdown", "sync_boost", "software_thermal", "hardware_thermal", "hardware_power_brake",
            )
        ),
        0,
    ),
    **dict.fromkeys(
        (
            f"throttled_seconds_total{{reason={reason}}}"
            for reason in ("power_cap", "sync_boost", "board_limit", "reliability", "thermal")
        ),
        0,
    ),
    **dict.fromkeys((f"memory_bandwidth_utilization_peak_ratio{{window={window}}}" for window in ("10s", "60s", "300s")), 0),
    **dict.fromkeys((f"power_peak_watts{{window={window}}}" for window in ("10s", "60s", "300s")), 79.004),
}  # fmt: skip


def readings(gpu, now_ns):
    """Everything that a GPU reports, as {"name{label=value}": value}."""
    return {
        name + ("{" + ",".join(f"{label}={value}" for label, value in labels) + "}" if labels else ""): value
        for name, labels, value in gpu.readings(now_ns)
    }


def test_an_idle_h100_value_by_value(sampled):
    """NVLink and fans are not there, since the H100 said NotSupported: left out, not 0 and not 2^64-1."""
    run = sampled([h100()])
    gpu = run.gpu(0)
    run.until(lambda: run.value(0, "dram_active_ratio") is not None)  # a difference needs a second sample
    assert readings(gpu, gpu.last_sample_monotonic_ns) == pytest.approx(IDLE_H100)
    assert gpu.info == {
        "uuid": "GPU-00000000-1111-2222-3333-444444444444",
        "name": "NVIDIA H100 80GB HBM3",
        "pci_bus_id": "00000000:00:06.0",
        "driver_version": H100_STATIC["driver"],
        "mig_profile": "",
    }
    assert (run.gpus.state, run.gpus.driver_version) == ("sampling", H100_STATIC["driver"])
    assert 0 < run.gpus.sample_duration_seconds < 1
    assert run.gpus.nvml_errors == {}  # what is not supported is no error


def test_what_is_not_supported_is_asked_once_and_what_is_dear_never(sampled):
    gpu = h100()
    gpu.lines = [
        line for line in gpu.lines if not re.match(r"get (nvmlDeviceGetPerformanceState|nvmlDeviceGetPowerUsage) ", line)
    ]
    run = sampled([gpu], slow_seconds=1)
    run.turns(2.5)
    calls = run.fake.calls()
    assert calls["nvmlDeviceGetPerformanceState"] == 1
    assert calls["nvmlDeviceGetPowerUsage"] == 1
    assert calls["nvmlDeviceGetTemperature"] >= 3  # twin: what is supported is asked again
    assert calls["nvmlDeviceGetUtilizationRates"] > 3 * calls["nvmlDeviceGetTemperature"]
    assert calls["nvmlDeviceGetMemoryInfo_v2"] > 2 * calls["nvmlDeviceGetUtilizationRates"]
    assert not NEVER & calls.keys()
    assert run.value(0, "power_watts") is None


def test_a_replayed_job_gives_the_recorded_maxima(sampled):
    """Matrices, copies and five spikes of 20 GiB: the peaks of the window are the recording's own."""
    gpu = h100()
    rows = replay(gpu, first_seconds=13.5, last_seconds=23.5, speed=2.0, pid=os.getpid())
    run = sampled([gpu])
    last_joules = pytest.approx(rows[-1]["energy_mj"] / 1e3)
    run.until(lambda: run.value(0, "energy_joules_total") == last_joules)
    ended = run.gpu(0).last_sample_monotonic_ns
    run.until(lambda: run.gpu(0).last_sample_monotonic_ns > ended + 2_500_000_000)  # energy and processes take turns
    found = readings(run.gpu(0), run.gpu(0).last_sample_monotonic_ns)
    most = max(row["used"] for row in H100_SERIES)
    assert (
        found["memory_used_peak_bytes{window=60s}"]
        == most - H100_RESERVED_BYTES
        == max(row["used"] for row in rows) - H100_RESERVED_BYTES
    )
    assert found["memory_used_bytes"] == rows[-1]["used"] - H100_RESERVED_BYTES < most - H100_RESERVED_BYTES
    assert found["utilization_peak_ratio{window=60s}"] == max(row["util"][0] for row in rows) / 100 == 1.0
    assert found["energy_joules_total"] == last_joules
    busy = sum(row["util"][0] / 100 for row in rows) * 5.0 / len(rows)
    assert found["busy_seconds_total"] == pytest.approx(busy, rel=0.25)
    process = run.gpu(0).processes[os.getpid()]
    assert process.memory_bytes == rows[-1]["procs"][0][1]
    assert process.memory_peak_bytes >= process.memory_bytes
    assert process.sm_utilization_ratio == rows[-1]["pu"][0][2] / 100
    assert found["memory_unattributed_bytes"] == found["memory_used_bytes"] - process.memory_bytes


def test_spikes_of_30_ms_are_caught_by_fast_sampling_only(sampled):
    """Falling heights, so that no spike hides another in the queue of peaks; a little further apart than lines are."""
    gpu = h100()
    total = H100_STATIC["memory_v2"]["total"]
    gpu.lines = [line for line in gpu.lines if not line.startswith("get memory ")]
    gpu.lines.append(f"at 0 memory {total} 0 {1 << 30}")
    spikes = {30 - number: 1.0 + 0.503 * number for number in range(10)}
    for gibibytes, at in spikes.items():
        gpu.lines += [f"at {at} memory {total} 0 {gibibytes << 30}", f"at {at + 0.03} memory {total} 0 {1 << 30}"]
    fast = sampled([gpu], memory_hz=50, fast_hz=1, dear_seconds=0.5)
    twin = type(fast)(fast.fake, memory_hz=1, fast_hz=1, dear_seconds=0.5)
    seen = {fast: set(), twin: set()}
    try:
        while time.monotonic() < fast.fake.epoch + max(spikes.values()) + 1.2:
            for each, values in seen.items():
                each.turns(0.05)
                for known in each.gpus:
                    values.update(known.memory_used_peaks._values)
    finally:
        twin.supervisor.close()
    heights = {gibibytes << 30 for gibibytes in spikes}
    assert len(seen[fast] & heights) >= 8
    assert len(seen[twin] & heights) <= 4  # once a second misses nearly all


def test_the_child_is_small_and_imports_little():
    import subprocess
    import sys

    code = "import sys, gpuwatch.samplers.nvml_worker; print(*sys.modules, sep='\\n')"
    names = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout.split()
    heavy = {"torch", "numpy", "msgspec", "psutil", "prometheus_client", "gpuwatch_hooks", "tensorboard", "logging", "asyncio"}
    assert not heavy & {name.partition(".")[0] for name in names}
    assert "gpuwatch.config" not in names
    assert "pynvml" in names


def test_the_child_takes_less_than_fourteen_mebibytes(sampled):
    run = sampled([h100(index) for index in range(8)])
    (pid,) = run.supervisor.child_pids()
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    assert int(re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)[1]) < 14 * 1024


def test_bus_counters_of_32_bits_are_followed_over_their_wraps(sampled):
    """20 GB/s wraps an H100's counter 4.7 times a second: read once a second, no arithmetic could tell."""
    gpu = h100()
    gpu.lines += ["rate field:197 20e9", "rate field:198 1e6"]
    run = sampled([gpu])
    run.turns(2.5)  # it may take a reading or two to see that the bus is busy
    before, since = run.value(0, "pcie_transmit_bytes_total"), run.gpu(0).last_sample_monotonic_ns
    slow_before = run.value(0, "pcie_receive_bytes_total")
    run.until(lambda: run.gpu(0).last_sample_monotonic_ns > since + 2_500_000_000)
    seconds = (run.gpu(0).last_sample_monotonic_ns - since) / 1e9
    assert run.value(0, "pcie_transmit_bytes_total") - before == pytest.approx(20e9 * seconds, rel=0.15)
    assert run.value(0, "pcie_receive_bytes_total") - slow_before == pytest.approx(1e6 * seconds, rel=0.5)
    with PynvmlProcess(run.fake.environment) as twin:
        twin.begin()
        raw = []
        for _ in range(8):
            raw.append(twin.ask("n.nvmlDeviceGetFieldValues(h[0], [197])[0].value.uiVal"))
            time.sleep(0.05)
    assert raw != sorted(raw)  # twin: what the driver itself says falls again and again
