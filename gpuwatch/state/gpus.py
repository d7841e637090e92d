"""What is known about the GPUs and the host. The samplers write it; exporters and detectors read it under the store's lock.

Values are kept under the names that the contract exports, without the prefix `gpuwatch_gpu_`, so that an exporter needs no
table of its own: `gpu.values["temperature_celsius", (("sensor", "core"),)]`. A name that ends in `_total` is a counter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gpuwatch.state.peaks import WINDOWS_SECONDS, Peaks

if TYPE_CHECKING:
    from collections.abc import Iterator

Labels = tuple[tuple[str, str], ...]
Key = tuple[str, Labels]

#: What sampling may be doing; absent: no driver here, off: not asked for.
STATES = ("starting", "sampling", "absent", "failing", "paused", "off")
_MAX_XIDS = 32


class GpuProcess(msgspec.Struct):
    """One process on one GPU, as the driver lists it; pids are the host's, also for a process in a container."""

    pid: int
    kind: str  # "compute" or "graphics"
    memory_bytes: int | None = None  # None: the driver does not say (MIG without privilege, WSL)
    memory_peak_bytes: int | None = None  # since we first saw it
    sm_utilization_ratio: float | None = None  # None: the driver does not say; an idle process has 0.0
    memory_bandwidth_utilization_ratio: float | None = None  # this and the next two as the one above
    encoder_utilization_ratio: float | None = None
    decoder_utilization_ratio: float | None = None
    uses_codec: bool = False  # it has used an encoder or a decoder since we first saw it
    command: str = ""  # basename of the program, never its arguments
    user: str = ""
    container: str = ""  # first 12 hex digits of the container's id
    slurm_job_id: str = ""
    kubernetes_pod: str = ""  # its name, or its UID where the name is not ours to read
    kubernetes_namespace: str = ""
    start_ticks: int = 0  # with the pid, who it is; 0: not known


class Gpu:
    """One GPU, or one MIG device of it. It keeps its label for as long as the daemon lives, wherever NVML's indices move."""

    def __init__(self, label: str, uuid: str) -> None:
        self.label = label  # the contract's `gpu`: NVML's index when first seen; "0:1" is MIG device 1 of GPU 0
        self.uuid = uuid
        self.info: dict[str, str] = {}  # gpu_info's labels: uuid, name, pci_bus_id, driver_version, mig_profile
        self.up = False
        self.reason = "not sampled yet"  # why it is down, in plain words
        self.values: dict[Key, float] = {}  # the latest gauges and the counters since the daemon saw the device first
        self.processes: dict[int, GpuProcess] = {}
        self.last_sample_monotonic_ns = 0  # 0: never
        self.last_sample_wall_ns = 0
        self.memory_used_peaks = Peaks()  # bytes
        self.utilization_peaks = Peaks()  # 0..1
        self._extremes: dict[Key, Peaks] = {
            ("memory_used_peak_bytes", ()): self.memory_used_peaks,
            ("utilization_peak_ratio", ()): self.utilization_peaks,
        }
        self._xid_last_seconds: dict[str, float] = {}  # Xid -> wall time
        self._raw_counters: dict[Key, float] = {}

    def set_gauges(self, gauges: dict[Key, float]) -> None:
        """Replaces every gauge; counters stay."""
        counters = {key: value for key, value in self.values.items() if key[0].endswith("_total")}
        self.values = gauges | counters

    def count(self, key: Key, increment: float) -> None:
        """Adds to a counter that we integrate ourselves, such as busy seconds."""
        self.values[key] = self.values.get(key, 0.0) + max(0.0, increment)

    def follow_counter(self, key: Key, raw: float) -> None:
        """Follows a counter that the driver keeps. One that restarts (a driver reload) goes on from where we were."""
        last = self._raw_counters.get(key)
        if last is None:
            self.values[key] = self.values.get(key, 0.0) + raw
        else:
            self.values[key] += raw - last if raw >= last else raw
        self._raw_counters[key] = raw

    def extremes_of(self, key: Key) -> Peaks:
        """The sliding extremes of this name and labels: the smallest values where the name says low, else the largest."""
        found = self._extremes.get(key)
        if found is None:
            found = self._extremes[key] = Peaks(low="_low_" in key[0])
        return found

    def count_xid(self, xid: int, times: int, wall_seconds: float) -> None:
        """An Xid error was reported, last at `wall_seconds`. A few dozen Xids exist: what goes beyond counts as "other"."""
        label = str(xid)
        if label not in self._xid_last_seconds and len(self._xid_last_seconds) >= _MAX_XIDS:
            label = "other"
        self.count(("xid_errors_total", (("xid", label),)), times)
        self._xid_last_seconds[label] = max(wall_seconds, self._xid_last_seconds.get(label, 0.0))

    def mark_down(self, reason: str) -> None:
        """Gauges and processes of a device that does not answer are nobody's truth: they go. Counters and peaks stay."""
        self.up = False
        self.reason = reason
        self.processes = {}
        self.set_gauges({})

    def readings(self, monotonic_ns: int) -> Iterator[tuple[str, Labels, float]]:
        """Every value but those of processes: (name without prefix, labels besides `gpu`, value), peaks included."""
        for (name, labels), value in self.values.items():
            yield name, labels, value
        for xid, wall_seconds in self._xid_last_seconds.items():  # also while the GPU is lost: this is the likely reason
            yield "xid_last_timestamp_seconds", (("xid", xid),), wall_seconds
        for (name, labels), extremes in self._extremes.items():
            for window, seconds in WINDOWS_SECONDS.items():
                extreme = extremes.largest(monotonic_ns, seconds)
                if extreme is not None:
                    yield name, (*labels, ("window", window)), extreme

    def age_seconds(self, monotonic_ns: int) -> float | None:
        """Seconds since the last good sample, or None when there was none."""
        return (monotonic_ns - self.last_sample_monotonic_ns) / 1e9 if self.last_sample_monotonic_ns else None


class Gpus:
    """All GPUs of this node by UUID, and how sampling them goes."""

    def __init__(self) -> None:
        self.by_uuid: dict[str, Gpu] = {}
        self.state = "starting"  # one of STATES
        self.message = ""  # for absent, failing and paused: one sentence for people
        self.samplers = 0  # our processes that may have the driver open
        self.driver_version = ""
        self.sample_duration_seconds: float | None = None  # of the last second's sampling, all GPUs
        self.memory_gap_seconds: float | None = None  # longest time between two readings of memory in the last second
        self.nvml_errors: dict[tuple[str, str], int] = {}  # (call, code) -> times
        self.nvml_reinits = 0

    def __iter__(self) -> Iterator[Gpu]:
        return iter(sorted(self.by_uuid.values(), key=lambda gpu: [int(part) for part in gpu.label.split(":")]))

    def find(self, uuid: str, wanted_label: str) -> Gpu:
        """The GPU with this UUID, made when new: under `wanted_label`, or the next free number when another GPU has that.

        A label never passes to other silicon while the daemon lives, or its counters would jump.
        """
        gpu = self.by_uuid.get(uuid)
        if gpu is None:
            taken = {known.label for known in self.by_uuid.values()}
            label = wanted_label
            parent, _, number = wanted_label.rpartition(":")
            while label in taken:
                number = str(int(number) + 1)
                label = f"{parent}:{number}" if parent else number
            gpu = self.by_uuid[uuid] = Gpu(label, uuid)
        return gpu


class HostProcess(msgspec.Struct, frozen=True):
    """What the kernel says of one training process."""

    cpu_seconds: float  # user and system, all threads, since it started
    resident_bytes: int
    read_bytes: int | None  # from storage, since it started; None: /proc/PID/io is not ours to read


class HostSample(msgspec.Struct, frozen=True):
    """The host at one moment, and the training processes by pid (as the daemon sees them)."""

    monotonic_ns: int
    cpu_utilization_ratio: float | None  # since the previous sample; None for the first
    memory_used_bytes: int
    memory_size_bytes: int
    processes: dict[int, HostProcess]
