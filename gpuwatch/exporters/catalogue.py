"""Every metric that gpuwatch can export: name, type, labels, meaning. docs/metrics.md is generated from this table."""

from __future__ import annotations

from typing import NamedTuple

PREFIX = "gpuwatch_"


class Metric(NamedTuple):
    """One family. `name` without PREFIX; `kind` is gauge, counter, histogram or info (1 with facts as labels)."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str
    detail: bool = False  # exported with prometheus.details only: the budget of 1,500 series has no room for it

    @property
    def unit(self) -> str:
        """The unit that the name ends in; "1" for ratios, "" for counts and facts."""
        stem = self.name.removesuffix("_total")
        for suffix, unit in _UNITS.items():
            if stem.endswith(suffix):
                return unit
        return ""


_UNITS = {
    "_timestamp_seconds": "seconds since the epoch",
    "_seconds": "seconds",
    "_bytes": "bytes",
    "_ratio": "1",
    "_watts": "watts",
    "_joules": "joules",
    "_celsius": "degrees Celsius",
    "_hertz": "hertz",
    "_lanes": "lanes",
}

_GPU = ("gpu",)
_PROCESS = ("gpu", "pid")
_PRECISION = ("run", "precision")
_RANK = ("run", "rank")

METRICS: tuple[Metric, ...] = (
    # The daemon itself
    Metric("build_info", "info", ("version",), "The running daemon's version."),
    Metric("up", "gauge", (), "1 while every component of the daemon works, else 0."),
    Metric("component_up", "gauge", ("component",), "1 while this component of the daemon works; 0 when it failed or hangs."),
    Metric("last_sample_timestamp_seconds", "gauge", _GPU, "When this GPU last answered."),
    Metric("sample_duration_seconds", "gauge", (), "Time that one second's sampling of all GPUs took."),
    Metric(
        "sample_gap_seconds",
        "gauge",
        (),
        "Longest time between two readings of memory in the last second: what lasted less may have been missed.",
    ),
    Metric(
        "sampling_state",
        "gauge",
        ("state",),
        "1 for what sampling of the GPUs does now; others have no series. absent: there is no driver; off: not asked for.",
    ),
    Metric(
        "sampler_processes", "gauge", (), "Processes of this daemon that may have the driver open; 0 after `pause --release`."
    ),
    Metric("nvml_errors_total", "counter", ("call", "code"), "Driver calls that failed, by call and error."),
    Metric(
        "notifications_total",
        "counter",
        ("target", "result"),
        "Findings for the command or webhook of [notify]: sent, failed (given up) or dropped (its queue was full).",
    ),
    Metric("nvml_reinits_total", "counter", (), "Times that the driver library had to be started anew."),
    # GPUs
    Metric("gpu_up", "gauge", _GPU, "1 while this GPU answers, else 0: its other gauges are absent then. Absent while paused."),
    Metric(
        "gpu_info",
        "info",
        ("gpu", "uuid", "name", "pci_bus_id", "driver_version", "mig_profile"),
        "What this GPU is; join by gpu.",
    ),
    Metric("gpu_utilization_ratio", "gauge", _GPU, "Share of the last sampling interval in which some kernel ran."),
    Metric("gpu_utilization_peak_ratio", "gauge", ("gpu", "window"), "Largest utilization within the window."),
    Metric("gpu_busy_seconds_total", "counter", _GPU, "Time in which some kernel ran: the integral of the utilization."),
    Metric(
        "gpu_memory_bandwidth_utilization_ratio", "gauge", _GPU, "Share of time in which device memory was read or written."
    ),
    Metric(
        "gpu_memory_bandwidth_utilization_peak_ratio",
        "gauge",
        ("gpu", "window"),
        "Largest share of time in which device memory was read or written, within the window.",
        detail=True,
    ),
    Metric("gpu_encoder_utilization_ratio", "gauge", _GPU, "Share of time in which the video encoders worked.", detail=True),
    Metric("gpu_decoder_utilization_ratio", "gauge", _GPU, "Share of time in which the video decoders worked.", detail=True),
    Metric("gpu_sm_active_ratio", "gauge", _GPU, "Share of time in which a multiprocessor had a warp, mean over all (GPM)."),
    Metric("gpu_sm_occupancy_ratio", "gauge", _GPU, "Resident warps over the most that the multiprocessors hold (GPM)."),
    Metric("gpu_tensor_active_ratio", "gauge", _GPU, "Share of cycles in which the tensor cores worked (GPM)."),
    Metric("gpu_dram_active_ratio", "gauge", _GPU, "Share of cycles in which device memory moved data (GPM)."),
    Metric("gpu_memory_size_bytes", "gauge", _GPU, "Device memory in all."),
    Metric("gpu_memory_used_bytes", "gauge", _GPU, "Device memory in use, what the driver reserves not counted."),
    Metric("gpu_memory_free_bytes", "gauge", _GPU, "Device memory that can be allocated."),
    Metric("gpu_memory_reserved_bytes", "gauge", _GPU, "Device memory that the driver keeps for itself."),
    Metric("gpu_memory_unattributed_bytes", "gauge", _GPU, "Used device memory that no listed process accounts for."),
    Metric("gpu_bar1_memory_used_bytes", "gauge", _GPU, "Mapped part of the BAR1 window."),
    Metric("gpu_memory_used_peak_bytes", "gauge", ("gpu", "window"), "Most device memory in use within the window."),
    Metric("gpu_power_watts", "gauge", _GPU, "Power drawn by the board."),
    Metric("gpu_power_peak_watts", "gauge", ("gpu", "window"), "Most power drawn within the window.", detail=True),
    Metric("gpu_power_limit_watts", "gauge", _GPU, "Power that the board may draw."),
    Metric(
        "gpu_energy_joules_total", "counter", _GPU, "Energy used since the daemon first saw this GPU or the driver was loaded."
    ),
    Metric("gpu_temperature_celsius", "gauge", ("gpu", "sensor"), "Temperature, by sensor."),
    Metric("gpu_temperature_threshold_celsius", "gauge", ("gpu", "threshold"), "Temperature at which the driver acts."),
    Metric("gpu_clock_hertz", "gauge", ("gpu", "domain"), "Present clock rate."),
    Metric(
        "gpu_clock_low_hertz",
        "gauge",
        ("gpu", "domain", "window"),
        "Lowest clock rate within the window, where the driver records it.",
        detail=True,
    ),
    Metric("gpu_clock_max_hertz", "gauge", ("gpu", "domain"), "Highest clock rate of this GPU."),
    Metric("gpu_throttle_active", "gauge", ("gpu", "reason"), "1 while the clocks are held down for this reason."),
    Metric("gpu_throttled_seconds_total", "counter", ("gpu", "reason"), "Time with clocks held down for this reason."),
    Metric("gpu_ecc_errors_total", "counter", ("gpu", "severity", "lifetime"), "Memory errors found by ECC."),
    Metric("gpu_remapped_rows", "gauge", ("gpu", "cause"), "Memory rows replaced by spare ones."),
    Metric("gpu_row_remap_pending", "gauge", _GPU, "1 while a row waits for a GPU reset to be replaced."),
    Metric("gpu_row_remap_failure", "gauge", _GPU, "1 when replacing a row has failed: the board needs service."),
    Metric("gpu_xid_errors_total", "counter", ("gpu", "xid"), "Xid errors that the driver reported."),
    Metric("gpu_xid_last_timestamp_seconds", "gauge", ("gpu", "xid"), "When this Xid error came last."),
    Metric("gpu_pcie_transmit_bytes_total", "counter", _GPU, "Bytes sent over PCIe."),
    Metric("gpu_pcie_receive_bytes_total", "counter", _GPU, "Bytes received over PCIe."),
    Metric("gpu_pcie_replays_total", "counter", _GPU, "PCIe packets sent again."),
    Metric("gpu_pcie_link_generation", "gauge", _GPU, "Present PCIe generation of the link."),
    Metric("gpu_pcie_link_width_lanes", "gauge", _GPU, "Present width of the link."),
    Metric("gpu_nvlink_transmit_bytes_total", "counter", _GPU, "Bytes sent over all NVLinks."),
    Metric("gpu_nvlink_receive_bytes_total", "counter", _GPU, "Bytes received over all NVLinks."),
    Metric("gpu_fan_speed_ratio", "gauge", ("gpu", "fan"), "Fan speed, of its greatest."),
    Metric("gpu_performance_state", "gauge", _GPU, "P-state: 0 is the fastest, 15 the slowest."),
    Metric("gpu_processes", "gauge", _GPU, "Processes that hold this GPU."),
    Metric(
        "gpu_process_info",
        "info",
        (
            *("gpu", "pid", "user", "command", "container", "slurm_job_id"),
            *("kubernetes_pod", "kubernetes_namespace", "run", "rank"),
        ),
        "What a process on this GPU is; join by gpu and pid. The command is the program's name, without arguments.",
    ),
    Metric(
        "gpu_process_memory_bytes", "gauge", _PROCESS, 'Device memory of this process; pid="other" sums those beyond the cap.'
    ),
    Metric("gpu_process_memory_peak_bytes", "gauge", _PROCESS, "Most device memory of this process since it was first seen."),
    Metric("gpu_process_sm_utilization_ratio", "gauge", _PROCESS, "Share of time in which this process's kernels ran."),
    Metric(
        "gpu_process_memory_bandwidth_utilization_ratio",
        "gauge",
        _PROCESS,
        "Share of time in which this process read or wrote device memory.",
        detail=True,
    ),
    Metric(
        "gpu_process_encoder_utilization_ratio",
        "gauge",
        _PROCESS,
        "Share of the video encoders' time; of processes that have used them or the decoders.",
    ),
    Metric(
        "gpu_process_decoder_utilization_ratio",
        "gauge",
        _PROCESS,
        "Share of the video decoders' time; of processes that have used them or the encoders.",
    ),
    # The host
    Metric("host_cpu_utilization_ratio", "gauge", (), "Share of all processors' time that was not idle."),
    Metric("host_memory_used_bytes", "gauge", (), "Memory of the host that is not available for new processes."),
    Metric("host_memory_size_bytes", "gauge", (), "Memory of the host in all."),
    Metric("train_process_cpu_seconds_total", "counter", _RANK, "Processor time of the training process, all threads."),
    Metric("train_process_resident_memory_bytes", "gauge", _RANK, "Resident memory of the training process."),
    Metric("train_process_read_bytes_total", "counter", _RANK, "Bytes that the training process read from storage."),
    # Training
    Metric(
        "train_info",
        "info",
        ("run", "rank", "world_size", "pid", "gpu", "framework", "torch_version", "precision", "job"),
        "What a training process is; join by run and rank.",
    ),
    Metric("train_steps_total", "counter", _RANK, "Training steps that were recorded."),
    Metric("train_last_step_timestamp_seconds", "gauge", _RANK, "When the last recorded step ended."),
    Metric("train_step_duration_seconds", "histogram", _RANK, "Time from one optimizer step to the next."),
    Metric("train_phase_seconds_total", "counter", (*_RANK, "phase"), "Time by phase of the step."),
    Metric("train_loss", "gauge", _RANK, "Loss of the last step, without the loss scale."),
    Metric("train_learning_rate", "gauge", (*_RANK, "group"), "Learning rate by parameter group."),
    Metric("train_grad_norm", "gauge", _RANK, "L2 norm of all gradients, unscaled, before clipping."),
    Metric("train_grad_absmax", "gauge", _RANK, "Largest magnitude of a gradient entry."),
    Metric("train_weight_norm", "gauge", _RANK, "L2 norm of all parameters (sampled)."),
    Metric("train_update_ratio", "gauge", _RANK, "L2 norm of the update over that of the weights (sampled)."),
    Metric("train_layer_grad_norm", "gauge", (*_RANK, "layer"), "Gradient norm of the largest layers: prometheus.layer_top_k."),
    Metric("train_nonfinite_gradients_total", "counter", _RANK, "Gradient entries that were NaN or infinite."),
    Metric("train_loss_scale", "gauge", _RANK, "GradScaler's scale."),
    Metric("train_loss_scale_backoffs_total", "counter", _RANK, "Times that the scale was reduced."),
    Metric("train_skipped_steps_total", "counter", _RANK, "Steps whose update the scaler skipped."),
    Metric("train_grad_underflow_ratio", "gauge", _RANK, "Share of non-zero gradient entries that fp16 would flush to zero."),
    Metric("train_autocast_active_ratio", "gauge", _RANK, "Share of the forward time spent under autocast."),
    Metric("train_amp_speedup_ratio", "gauge", ("run",), "Steps a second under autocast over those in float32: the AMP probe."),
    Metric("train_amp_memory_saving_ratio", "gauge", ("run",), "Share of the peak memory that autocast saves: the AMP probe."),
    Metric("train_amp_step_duration_seconds", "gauge", _PRECISION, "Usual step in float32 and under autocast: the AMP probe."),
    Metric("train_amp_peak_memory_bytes", "gauge", _PRECISION, "Device memory at most in either: the AMP probe."),
    Metric("train_torch_allocated_bytes", "gauge", (*_RANK, "gpu"), "Device memory that torch's tensors hold."),
    Metric("train_torch_reserved_bytes", "gauge", (*_RANK, "gpu"), "Device memory that torch's allocator holds."),
    Metric(
        "train_torch_allocated_peak_bytes", "gauge", (*_RANK, "gpu"), "Most device memory that torch's tensors held in a step."
    ),
    Metric("train_scalar", "gauge", (*_RANK, "tag"), "Last value of a scalar that the job logged."),
    Metric("train_alert_active", "gauge", (*_RANK, "rule"), "1 while a finding of this rule is active, 0 once it has closed."),
    Metric(
        "train_alerts_total", "counter", (*_RANK, "rule"), "Findings of this rule; every rule is there from the start, at 0."
    ),
    Metric("train_hook_overhead_seconds_total", "counter", _RANK, "Time that the hooks took on the training thread."),
    Metric("train_hook_overhead_ratio", "gauge", _RANK, "Share of the step time that the hooks take, smoothed."),
    Metric("train_records_total", "counter", _RANK, "Records received from the hooks."),
    Metric("train_records_dropped_total", "counter", (*_RANK, "reason"), "Records that were lost, by reason."),
)

#: Label values that are details, too: (metric, value).
DETAIL_VALUES = frozenset(
    (
        *(("gpu_throttled_seconds_total", reason) for reason in ("sync_boost", "board_limit", "reliability")),
        *(("gpu_clock_max_hertz", domain) for domain in ("graphics", "video")),  # graphics: the same as sm
        *(("gpu_clock_hertz", "video"), ("gpu_temperature_threshold_celsius", "gpu_max")),
    )
)

BY_NAME = {metric.name: metric for metric in METRICS}
