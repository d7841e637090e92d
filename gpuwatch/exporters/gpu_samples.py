"""GPUs, the processes on them, and the host, as samples."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

from gpuwatch.exporters.catalogue import BY_NAME, DETAIL_VALUES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuwatch.exporters.samples import Samples
    from gpuwatch.state.gpus import Gpu, GpuProcess, Gpus, HostSample, Labels

#: The `pid` that sums the processes beyond the cap.
OTHER_PID = "other"


def add_gpus(samples: Samples, gpus: Gpus, now_ns: int, ranks: Mapping[int, tuple[str, str]], process_rows: int) -> None:
    """Every GPU. `ranks`: pid -> (run, rank) of the training processes; `process_rows`: processes of a GPU with own series."""
    for gpu in gpus:
        label = (gpu.label,)
        if gpus.state != "paused":  # nobody knows then, and a 0 would call somebody out of bed
            samples.add("gpu_up", label, int(gpu.up))
        samples.add_named("gpu_info", {**gpu.info, "gpu": gpu.label, "uuid": gpu.uuid}, 1)
        if gpu.last_sample_wall_ns:
            samples.add("last_sample_timestamp_seconds", label, gpu.last_sample_wall_ns / 1e9)
        for name, labels, value in gpu.readings(now_ns):
            series = _series(gpu.label, name, labels)
            if series is not None and not (series.is_detail and samples.without_details):
                samples.add(series.metric, series.labels, value)
        if gpu.up:
            samples.add("gpu_processes", label, len(gpu.processes))
            _add_processes(samples, gpu, ranks, process_rows)
    samples.add("sample_duration_seconds", (), gpus.sample_duration_seconds)
    samples.add("sample_gap_seconds", (), gpus.memory_gap_seconds)
    samples.add("sampling_state", (gpus.state,), 1)
    samples.add("sampler_processes", (), gpus.samplers)
    for (call, code), count in sorted(gpus.nvml_errors.items()):
        samples.add("nvml_errors_total", (call, code), count)
    samples.add("nvml_reinits_total", (), gpus.nvml_reinits)


class _Series(NamedTuple):
    metric: str
    labels: tuple[str, ...]  # in the metric's order
    is_detail: bool


@functools.lru_cache(maxsize=1 << 15)
def _series(gpu: str, name: str, labels: Labels) -> _Series | None:
    """Where a reading of a GPU belongs; None: there is no such metric. A hundred readings of each GPU ask at each scrape."""
    metric = BY_NAME.get(f"gpu_{name}")
    named = {"gpu": gpu, **dict(labels)}
    if metric is None or not named.keys() <= set(metric.labels):
        return None
    is_detail = metric.detail or any((metric.name, value) in DETAIL_VALUES for value in named.values())
    return _Series(metric.name, tuple(named.get(label, "") for label in metric.labels), is_detail)


def add_host(samples: Samples, host: HostSample | None) -> None:
    if host is None:
        return
    samples.add("host_cpu_utilization_ratio", (), host.cpu_utilization_ratio)
    samples.add("host_memory_used_bytes", (), host.memory_used_bytes)
    samples.add("host_memory_size_bytes", (), host.memory_size_bytes)


def _add_processes(samples: Samples, gpu: Gpu, ranks: Mapping[int, tuple[str, str]], process_rows: int) -> None:
    # The training processes first, then those with the most memory: these are the ones that somebody looks for.
    processes = sorted(gpu.processes.values(), key=lambda process: (process.pid not in ranks, -(process.memory_bytes or 0)))
    for process in processes[:process_rows]:
        pid = str(process.pid)
        run, rank = ranks.get(process.pid, ("", ""))
        facts = (
            *(process.user, process.command, process.container, process.slurm_job_id),
            *(process.kubernetes_pod, process.kubernetes_namespace),
        )
        samples.add("gpu_process_info", (gpu.label, pid, *facts, run, rank), 1)
        _add_process(samples, (gpu.label, pid), [process])
    if processes[process_rows:]:
        _add_process(samples, (gpu.label, OTHER_PID), processes[process_rows:])


def _add_process(samples: Samples, labels: tuple[str, str], processes: list[GpuProcess]) -> None:
    for name, values in (
        ("gpu_process_memory_bytes", [process.memory_bytes for process in processes]),
        ("gpu_process_memory_peak_bytes", [process.memory_peak_bytes for process in processes]),
        ("gpu_process_sm_utilization_ratio", [process.sm_utilization_ratio for process in processes]),
        (
            "gpu_process_memory_bandwidth_utilization_ratio",
            [process.memory_bandwidth_utilization_ratio for process in processes],
        ),
        ("gpu_process_encoder_utilization_ratio", [p.encoder_utilization_ratio for p in processes if p.uses_codec]),
        ("gpu_process_decoder_utilization_ratio", [p.decoder_utilization_ratio for p in processes if p.uses_codec]),
    ):
        known = [value for value in values if value is not None]
        if known:
            samples.add(name, labels, sum(known))
