"""What the web page shows of this moment, as one JSON object: made once a second for all who look, never while nobody does."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec

from gpuwatch.state.counters import PHASES
from gpuwatch.state.summary import jsonable

if TYPE_CHECKING:
    from gpuwatch.selfstats import SelfStats
    from gpuwatch.state.findings import Finding
    from gpuwatch.state.gpus import Gpu
    from gpuwatch.state.runs import Run
    from gpuwatch.state.store import State

#: Whoever asks within this time of the last one gets the same bytes.
_MAX_AGE_SECONDS = 0.8
#: The rate of a run is over its last steps.
_RATE_STEPS = 64
_VALUES = ("loss", "grad_norm", "grad_norm_clipped", "loss_scale", "update_ratio", "torch_allocated_bytes", "overhead_ratio")
#: What a card of a GPU says; the contract's names without `gpuwatch_gpu_`. Labels become one level of the tree.
_GAUGES = frozenset(
    (
        *("utilization_ratio", "memory_used_bytes", "memory_size_bytes", "memory_unattributed_bytes", "power_watts"),
        *("power_limit_watts", "sm_active_ratio", "tensor_active_ratio", "dram_active_ratio", "temperature_celsius"),
        *("temperature_threshold_celsius", "clock_hertz", "clock_max_hertz", "throttle_active", "xid_errors_total"),
        *("row_remap_pending", "row_remap_failure"),
    )
)


class Live:
    """`snapshot` may be called by any thread. `renderings` counts how often it had to be made."""

    def __init__(self, state: State, stats: SelfStats, version: str) -> None:
        self._state = state
        self._stats = stats
        self._lock = threading.Lock()
        self._made_at = -1e9  # time.monotonic()
        self._snapshot = b""
        self._ended: dict[str, msgspec.Raw] = {}  # run directory -> what is said of a run that has ended
        self._daemon = {"version": version, "started": time.time(), "logdir": printable(state.logdir)}
        self.renderings = 0

    def snapshot(self) -> bytes:
        """The JSON object; values that are not finite are strings in it ("nan", "inf"), where they are a run's."""
        with self._lock:
            now = time.monotonic()
            if now - self._made_at > _MAX_AGE_SECONDS:
                self._snapshot = self._render()
                self._made_at = now
                self.renderings += 1
            return self._snapshot

    def event(self) -> bytes:
        """The snapshot as a server-sent event."""
        return b"data: " + self.snapshot() + b"\n\n"

    def _render(self) -> bytes:
        components = {name: known.last_error for name, known in self._stats.components().items() if not known.up}
        with self._state.lock:  # encoded under it too: what is encoded is the state itself, not a copy
            gpus, host, now_ns = self._state.gpus, self._state.host, time.monotonic_ns()
            return msgspec.json.encode(
                {
                    "wall_seconds": time.time(),
                    "daemon": self._daemon,
                    "components": components,
                    "state": gpus.state,
                    "message": gpus.message,
                    "driver_version": gpus.driver_version,
                    "gpus": [_gpu(gpu, now_ns) for gpu in gpus],
                    "host": host,
                    "runs": self._runs(),
                }
            )

    def _runs(self) -> list[object]:
        active: dict[str, list[Finding]] = {}
        for (directory, _, _), finding in self._state.findings.active.items():
            active.setdefault(directory, []).append(finding)
        told: list[object] = []
        ended: dict[str, msgspec.Raw] = {}
        for directory, run in self._state.runs.items():
            if run.status == "live" or directory in active:
                told.append(_run(run, active.get(directory, [])))
                continue
            # Its last words do not change: 64 ended runs would take as long as all the rest.
            kept = self._ended.get(directory) or msgspec.Raw(msgspec.json.encode({**_run(run, []), "ended": time.time()}))
            told.append(kept)
            ended[directory] = kept
        self._ended = ended
        return told


def printable(path: str) -> str:
    """A path as JSON can hold it: a byte that is no UTF-8 is a question mark."""
    return path.encode("utf-8", "replace").decode()


def _gpu(gpu: Gpu, now_ns: int) -> dict[str, object]:
    values: dict[str, Any] = {}
    for name, labels, value in gpu.readings(now_ns):
        if labels and (name in _GAUGES or name.endswith(("_peak_bytes", "_peak_ratio"))):
            values.setdefault(name, {})[labels[0][1]] = value
        elif name in _GAUGES:
            values[name] = value
        elif name == "ecc_errors_total" and ("severity", "uncorrected") in labels:
            values["ecc_uncorrected_total"] = max(value, values.get("ecc_uncorrected_total", 0.0))
    age = gpu.age_seconds(now_ns)
    return {
        "gpu": gpu.label,
        "uuid": gpu.uuid,
        "name": gpu.info.get("name", ""),
        "mig_profile": gpu.info.get("mig_profile", ""),
        "up": gpu.up,
        "reason": gpu.reason,
        "age_seconds": None if age is None else round(age, 1),
        "values": values,
        "memory_second_peak_bytes": gpu.memory_used_peaks.largest(gpu.last_sample_monotonic_ns, 0),
        "processes": list(gpu.processes.values()),
    }


def _run(run: Run, findings: list[Finding]) -> dict[str, object]:
    took = run.windows["step_seconds"].values()[-_RATE_STEPS:]
    usable = [seconds for seconds in took if seconds > 0]
    phases = run.counters.phase_seconds
    return {
        "run": run.name,
        "directory": run.directory,
        "rank": run.rank,
        "world_size": run.world_size,
        "attempt": run.attempt,
        "pid": run.identity.pid,
        "program": run.hello.program,
        "precision": str(run.facts.get("precision", "")),
        "status": run.status,
        "started": run.started_wall_seconds,
        "step": run.last_step,
        "step_at": run.wall_seconds(run.step.monotonic_ns) if run.step is not None else None,
        "steps_per_second": len(usable) / sum(usable) if usable else None,
        "values": {name: jsonable(run.values[name]) for name in _VALUES if name in run.values},
        "learning_rate": jsonable(run.learning_rates[0][0]) if run.learning_rates else None,
        "phase_seconds": {phase: phases[phase] for phase in PHASES if phase in phases},
        "skipped_steps": run.counters.skipped_steps,
        "lost_records": sum(run.counters.dropped.values()),
        "findings": findings,
        "finding_counts": run.counters.findings,
    }
