"""The lines that the NVML child writes, decoded strictly and applied to the state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gpuwatch.state.gpus import GpuProcess, Key

if TYPE_CHECKING:
    from gpuwatch.state.gpus import Gpu, Gpus

# (start ticks, command, user, container, SLURM job, Kubernetes pod, its namespace)
Identity = tuple[int, str, str, str, str, str, str]
# (pid, kind, bytes, (share of the SMs, of the memory's bandwidth, of the encoders, of the decoders))
ProcessRow = tuple[int, str, int | None, tuple[float, float, float, float] | None]


class DeviceLine(msgspec.Struct):
    """One device's share of a line: why it is down, or what changed since the line before."""

    index: int
    label: str
    uuid: str
    down: str = ""
    info: dict[str, str] | None = None  # with its first line after it was opened: forget what was known before
    gauges: dict[str, float | None] = {}  # None: no longer to be had
    counters: dict[str, float] = {}
    increments: dict[str, float] = {}
    peaks: dict[str, float] = {}  # largest since the line before
    extremes: dict[str, list[tuple[int, float]]] = {}  # from the driver's rings, each with its CLOCK_MONOTONIC ns
    xids: list[tuple[int, int, int]] = []  # Xid, times since the line before, wall time of the last in ns
    processes: list[ProcessRow] | None = None


class SampleLine(msgspec.Struct, tag_field="t", tag="sample"):
    """A second of sampling."""

    monotonic_ns: int
    wall_ns: int
    seconds: float  # spent sampling
    memory_gap_seconds: float  # longest time between two readings of memory
    driver: str
    reinits: int
    errors: dict[str, int]  # "call|code" -> times
    identities: dict[int, Identity]  # of processes not told before
    gpus: list[DeviceLine]


class GoneLine(msgspec.Struct, tag_field="t", tag="gone"):
    """NVML as a whole does not answer; `worked`: it did before."""

    code: str
    reason: str
    worked: bool
    errors: dict[str, int]


Line = SampleLine | GoneLine

_NOBODY: Identity = (0, "", "", "", "", "", "")

_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)
_keys: dict[str, Key] = {}


def decode(line: bytes) -> Line:
    """Raises msgspec.DecodeError for anything that the child does not write."""
    return _decoder.decode(line)


def key(name: str) -> Key:
    """`metric;label=value;...` as the state's key; there are a few hundred of them, each parsed once."""
    known = _keys.get(name)
    if known is None:
        metric, *labels = name.split(";")
        pairs = [label.partition("=") for label in labels]
        known = _keys[name] = (metric, tuple((label, value) for label, _, value in pairs))
    return known


def unknown_uuid(index: int) -> str:
    """Stands for the UUID of a GPU that has never answered, so that it shows as down instead of not at all."""
    return f"unknown-{index}"


class Heard:
    """What one child has told so far: identities by pid, and the devices of its lines as UUID -> GPU index."""

    def __init__(self) -> None:
        self.identities: dict[int, Identity] = {}
        self.devices: dict[str, int] = {}

    def at(self, index: int) -> list[str]:
        """The devices of a GPU that does not say who it is, as far as they were ever told."""
        return [uuid for uuid, known in self.devices.items() if known == index] or [unknown_uuid(index)]


def apply(line: SampleLine, gpus: Gpus, heard: Heard) -> None:
    """Brings `gpus` up to date with a line, and `heard` with what its child has told."""
    gpus.state, gpus.message = "sampling", ""
    gpus.driver_version = line.driver
    gpus.nvml_reinits += line.reinits
    gpus.memory_gap_seconds = line.memory_gap_seconds or None
    count_errors(line.errors, gpus)
    heard.identities.update(line.identities)
    listed: set[int] = set()
    for device in line.gpus:
        if device.uuid:
            gpus.by_uuid.pop(unknown_uuid(device.index), None)
        for uuid in [device.uuid] if device.uuid else heard.at(device.index):
            gpu = gpus.find(uuid, device.label)
            for xid, times, wall_ns in device.xids:
                gpu.count_xid(xid, times, wall_ns / 1e9)
            if device.down:
                gpu.mark_down(device.down)
            else:
                _apply_device(device, gpu, line, heard.identities)
                listed.update(gpu.processes)
    for pid in heard.identities.keys() - listed:
        del heard.identities[pid]
    _forget_unlisted(line, gpus, heard)


def count_errors(errors: dict[str, int], gpus: Gpus) -> None:
    """`errors`: "call|code" -> times, as lines carry them."""
    for call_and_code, times in errors.items():
        call, _, code = call_and_code.partition("|")
        gpus.nvml_errors[call, code] = gpus.nvml_errors.get((call, code), 0) + times


def _forget_unlisted(line: SampleLine, gpus: Gpus, heard: Heard) -> None:
    """A GPU that the driver no longer lists is down; a MIG device that it no longer lists does not exist."""
    devices = {
        uuid: device.index for device in line.gpus for uuid in ([device.uuid] if device.uuid else heard.at(device.index))
    }
    for uuid in heard.devices.keys() - devices.keys():
        gpu = gpus.by_uuid.get(uuid)
        if gpu is not None and ":" in gpu.label:
            del gpus.by_uuid[uuid]
        elif gpu is not None:
            gpu.mark_down("the driver no longer lists it")
    heard.devices = devices


def _apply_device(device: DeviceLine, gpu: Gpu, line: SampleLine, identities: dict[int, Identity]) -> None:
    if device.info is not None:
        gpu.info = device.info
        gpu.set_gauges({})
    gpu.up, gpu.reason = True, ""
    gpu.last_sample_monotonic_ns, gpu.last_sample_wall_ns = line.monotonic_ns, line.wall_ns
    for name, value in device.gauges.items():
        if value is None:
            gpu.values.pop(key(name), None)
        else:
            gpu.values[key(name)] = value
    for name, raw in device.counters.items():
        gpu.follow_counter(key(name), raw)
    for name, increment in device.increments.items():
        gpu.count(key(name), increment)
    for name, value in device.peaks.items():
        gpu.extremes_of(key(name)).add(line.monotonic_ns, value)
    for name, readings in device.extremes.items():
        extremes = gpu.extremes_of(key(name))
        for monotonic_ns, value in readings:
            extremes.add(monotonic_ns, value)
    if device.processes is not None:
        _apply_processes(device.processes, gpu, identities)


def _apply_processes(rows: list[ProcessRow], gpu: Gpu, identities: dict[int, Identity]) -> None:
    processes: dict[int, GpuProcess] = {}
    for pid, kind, memory_bytes, busy in rows:
        start_ticks, command, user, container, slurm_job_id, pod, namespace = identities.get(pid, _NOBODY)
        process = gpu.processes.get(pid)
        if process is None or process.start_ticks != start_ticks:
            process = GpuProcess(pid=pid, kind=kind, start_ticks=start_ticks)
        process.kind, process.memory_bytes = kind, memory_bytes
        (
            process.sm_utilization_ratio,
            process.memory_bandwidth_utilization_ratio,
            process.encoder_utilization_ratio,
            process.decoder_utilization_ratio,
        ) = busy or (None, None, None, None)
        process.uses_codec |= bool(busy and (busy[2] or busy[3]))
        if memory_bytes is not None:
            process.memory_peak_bytes = max(memory_bytes, process.memory_peak_bytes or 0)
        process.command, process.user, process.container, process.slurm_job_id = command, user, container, slurm_job_id
        process.kubernetes_pod, process.kubernetes_namespace = pod, namespace
        processes[pid] = process
    gpu.processes = processes
