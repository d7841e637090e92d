"""GPUs, the processes on them and the host as one tree that JSON can hold: for `/api/gpus` and for whoever samples alone.

Values go by the contract's names without `gpuwatch_gpu_`; labels other than the GPU become levels of the tree, so that
`temperature_celsius{sensor="core"}` is `values["temperature_celsius"]["core"]`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from gpuwatch.state.gpus import HostSample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuwatch.state.gpus import Gpu, GpuProcess, Gpus


class ProcessReport(msgspec.Struct):
    """One process on one GPU; what the driver or the kernel does not say is None or empty."""

    pid: int
    kind: str = ""  # compute or graphics
    start_ticks: int = 0  # with the pid, who it is; 0: not known
    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    sm_utilization_ratio: float | None = None
    memory_bandwidth_utilization_ratio: float | None = None
    encoder_utilization_ratio: float | None = None
    decoder_utilization_ratio: float | None = None
    uses_codec: bool = False  # it has used an encoder or a decoder since it was first seen
    user: str = ""
    command: str = ""
    container: str = ""
    slurm_job_id: str = ""
    kubernetes_pod: str = ""  # its name, or its UID where the name is not ours to read
    kubernetes_namespace: str = ""
    run: str = ""  # of the hooks in this very process
    rank: str = ""


class GpuReport(msgspec.Struct):
    """One GPU or MIG device. `reason` says why it is down; it has neither values nor processes then."""

    gpu: str
    uuid: str
    up: bool
    reason: str
    age_seconds: float | None  # of the last good sample
    info: dict[str, str]
    values: dict[str, Any]
    processes: list[ProcessReport]


class NodeReport(msgspec.Struct):
    """This node at one moment."""

    wall_seconds: float
    state: str  # of sampling the GPUs: starting, sampling, absent, failing, paused, off
    message: str  # why, for absent, failing and paused
    driver_version: str
    gpus: list[GpuReport]
    host: HostSample | None


def report(gpus: Gpus, host: HostSample | None, ranks: Mapping[int, tuple[str, str]]) -> NodeReport:
    """Everything as of now. `ranks`: pid -> (run, rank) of the live training processes. Call it under the state's lock."""
    now_ns = time.monotonic_ns()
    return NodeReport(
        wall_seconds=time.time(),
        state=gpus.state,
        message=gpus.message,
        driver_version=gpus.driver_version,
        gpus=[_gpu(gpu, now_ns, ranks) for gpu in gpus],
        host=host,
    )


def _gpu(gpu: Gpu, now_ns: int, ranks: Mapping[int, tuple[str, str]]) -> GpuReport:
    values: dict[str, Any] = {}
    for name, labels, value in gpu.readings(now_ns):
        level, last = values, name
        for _, label in labels:
            level, last = level.setdefault(last, {}), label
        level[last] = value
    return GpuReport(
        gpu=gpu.label,
        uuid=gpu.uuid,
        up=gpu.up,
        reason=gpu.reason,
        age_seconds=gpu.age_seconds(now_ns),
        info=dict(gpu.info),
        values=values,
        processes=[_process(process, *ranks.get(process.pid, ("", ""))) for process in gpu.processes.values()],
    )


def _process(process: GpuProcess, run: str, rank: str) -> ProcessReport:
    facts = {name: getattr(process, name) for name in process.__struct_fields__}
    return ProcessReport(**facts, run=run, rank=rank)
