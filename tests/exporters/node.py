"""A node full of GPUs as the samplers would leave it in the state: every value that the contract names, with all its labels."""

from __future__ import annotations

from gpuwatch.state.gpus import GpuProcess, HostProcess, HostSample

REASONS = ("power_cap", "hardware_slowdown", "sync_boost", "software_thermal", "hardware_thermal", "hardware_power_brake")
VIOLATIONS = (
    "power_cap",
    "sync_boost",
    "board_limit",
    "reliability",
    "software_thermal",
    "hardware_thermal",
    "hardware_power_brake",
)
DOMAINS = ("graphics", "sm", "memory", "video")
WALL_NS = 1_700_000_000_000_000_000


def fill(state, *, gpus=1, processes=1, ranks=(), now_ns):
    """`gpus` GPUs with `processes` processes each; the pids in `ranks` are training processes on GPU 0, 1, ..."""
    for index in range(gpus):
        gpu = state.gpus.find(f"GPU-{index:04d}", str(index))
        gpu.info = {
            "uuid": gpu.uuid,
            "name": "NVIDIA H100 80GB HBM3",
            "pci_bus_id": f"00000000:{index:02X}:00.0",
            "driver_version": "580.159.04",
            "mig_profile": "",
        }
        gpu.up, gpu.reason = True, ""
        gpu.last_sample_monotonic_ns, gpu.last_sample_wall_ns = now_ns, WALL_NS
        gpu.values = dict(values(index))
        gpu.memory_used_peaks.add(now_ns, 60 << 30)
        gpu.utilization_peaks.add(now_ns, 1.0)
        gpu.extremes_of(("memory_bandwidth_utilization_peak_ratio", ())).add(now_ns, 0.75)
        gpu.extremes_of(("power_peak_watts", ())).add(now_ns, 690.5)
        gpu.extremes_of(("clock_low_hertz", (("domain", "sm"),))).add(now_ns, 345e6)
        gpu.count_xid(79, 2, 1_700_000_000.5)
        for number in range(processes):
            pid = ranks[index] if number == 0 and index < len(ranks) else 10_000 + 100 * index + number
            gpu.processes[pid] = GpuProcess(
                pid=pid,
                kind="compute",
                memory_bytes=(number + 1) << 30,
                memory_peak_bytes=(number + 2) << 30,
                sm_utilization_ratio=0.125,
                memory_bandwidth_utilization_ratio=0.0625,
                encoder_utilization_ratio=0.25,
                decoder_utilization_ratio=0.5,
                uses_codec=index == 0 and number == 0,
                command="python3",
                user="alice",
                container="0123456789ab",
                slurm_job_id="4711",
                kubernetes_pod="trainer-0",
                kubernetes_namespace="research",
            )
    state.gpus.state = "sampling"
    state.gpus.sample_duration_seconds = 0.0078125
    state.gpus.memory_gap_seconds = 0.0234375
    state.gpus.samplers = 1
    state.gpus.nvml_errors = {("nvmlDeviceGetPowerUsage", "Timeout"): 2}
    state.gpus.nvml_reinits = 1
    known = {pid: HostProcess(cpu_seconds=12.5, resident_bytes=4 << 30, read_bytes=1 << 20) for pid in ranks}
    state.host = HostSample(now_ns, 0.375, 100 << 30, 512 << 30, known)


def values(index):
    """(name without prefix, labels) -> value; each value differs, so that a mix-up shows."""
    plain = (
        *("utilization_ratio", "memory_bandwidth_utilization_ratio", "sm_active_ratio", "sm_occupancy_ratio"),
        *("encoder_utilization_ratio", "decoder_utilization_ratio"),
        *("tensor_active_ratio", "dram_active_ratio", "busy_seconds_total", "memory_size_bytes", "memory_used_bytes"),
        *("memory_free_bytes", "memory_reserved_bytes", "memory_unattributed_bytes", "bar1_memory_used_bytes"),
        *("power_watts", "power_limit_watts", "energy_joules_total", "row_remap_pending", "row_remap_failure"),
        *("pcie_transmit_bytes_total", "pcie_receive_bytes_total", "pcie_replays_total", "pcie_link_generation"),
        *("pcie_link_width_lanes", "nvlink_transmit_bytes_total", "nvlink_receive_bytes_total", "performance_state"),
    )
    labelled = [
        *(("temperature_celsius", {"sensor": sensor}) for sensor in ("core", "memory")),
        *(("temperature_threshold_celsius", {"threshold": name}) for name in ("shutdown", "slowdown", "memory_max", "gpu_max")),
        *(("clock_hertz", {"domain": domain}) for domain in DOMAINS),
        *(("clock_max_hertz", {"domain": domain}) for domain in DOMAINS),
        *(("throttle_active", {"reason": reason}) for reason in REASONS),
        *(("throttled_seconds_total", {"reason": reason}) for reason in VIOLATIONS),
        *(
            ("ecc_errors_total", {"severity": severity, "lifetime": lifetime})
            for severity in ("corrected", "uncorrected")
            for lifetime in ("volatile", "aggregate")
        ),
        *(("remapped_rows", {"cause": cause}) for cause in ("correctable", "uncorrectable")),
        ("fan_speed_ratio", {"fan": "0"}),
    ]
    for number, (name, labels) in enumerate([*((name, {}) for name in plain), *labelled]):
        yield (name, tuple(labels.items())), 1000.0 * index + number + 0.5
