"""One training process as samples."""

from __future__ import annotations

import math
from heapq import nlargest
from typing import TYPE_CHECKING

from gpuwatch.state import layers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpuwatch.exporters.samples import Samples
    from gpuwatch.state.gpus import HostProcess
    from gpuwatch.state.runs import Run

#: Step field -> gauge.
_GAUGES = {
    "loss": "train_loss",
    "grad_norm": "train_grad_norm",
    "grad_absmax": "train_grad_absmax",
    "weight_norm": "train_weight_norm",
    "update_ratio": "train_update_ratio",
    "loss_scale": "train_loss_scale",
    "grad_underflow_ratio": "train_grad_underflow_ratio",
    "autocast_ratio": "train_autocast_active_ratio",
    "overhead_ratio": "train_hook_overhead_ratio",
}
#: What the AMP probe of rank 0 has measured -> gauge.
_AMP = {"amp_speedup_ratio": "train_amp_speedup_ratio", "amp_memory_saving_ratio": "train_amp_memory_saving_ratio"}
_MEMORY = {
    "torch_allocated_bytes": "train_torch_allocated_bytes",
    "torch_reserved_bytes": "train_torch_reserved_bytes",
    "torch_allocated_peak_bytes": "train_torch_allocated_peak_bytes",
}
#: The one reason for a lost record that is there from the start, at 0, so that increase() sees the first one; the others
#: are rare enough to appear when they happen (8 ranks with every reason and every rule would be over 1,500 series).
_COMMON_DROP_REASON = "overwritten"


def add_run(samples: Samples, run: Run, gpus: Sequence[str], process: HostProcess | None, layer_top_k: int) -> None:
    """Everything of one run but its findings. `gpus`: labels of the GPUs that its process is on."""
    rank = (run.name, str(run.rank))
    _add_info(samples, run, rank, gpus)
    _add_counters(samples, run, rank)
    for field, name in _GAUGES.items():
        samples.add(name, rank, run.values.get(field))
    for number, (learning_rate, _) in enumerate(run.learning_rates):
        if not math.isnan(learning_rate):  # NaN: the group has none
            samples.add("train_learning_rate", (*rank, run.group_name(number)), learning_rate)
    _add_memory(samples, run, rank, gpus)
    if run.rank == 0:
        _add_amp(samples, run)
    for tag, scalar in run.scalars.items():
        samples.add("train_scalar", (*rank, tag), scalar.value)
    if layer_top_k:
        _add_layers(samples, run, rank, layer_top_k)
    if process is not None:
        samples.add("train_process_cpu_seconds_total", rank, process.cpu_seconds)
        samples.add("train_process_resident_memory_bytes", rank, process.resident_bytes)
        samples.add("train_process_read_bytes_total", rank, process.read_bytes)


def add_findings(samples: Samples, run: Run, active: Mapping[str, bool]) -> None:
    """`active`: for every rule that there is, whether a finding of it is active in this run."""
    for rule, is_active in active.items():
        labels = (run.name, str(run.rank), rule)
        total = run.counters.findings.get(rule, 0)
        samples.add("train_alerts_total", labels, total)
        if is_active or total:
            samples.add("train_alert_active", labels, int(is_active))


def _add_counters(samples: Samples, run: Run, rank: tuple[str, str]) -> None:
    counters = run.counters
    samples.add("train_steps_total", rank, counters.steps)
    if run.step is not None:
        samples.add("train_last_step_timestamp_seconds", rank, run.wall_seconds(run.step.monotonic_ns))
    samples.add("train_step_duration_seconds", rank, run.durations)
    for phase, seconds in counters.phase_seconds.items():
        samples.add("train_phase_seconds_total", (*rank, phase), seconds)
    samples.add("train_nonfinite_gradients_total", rank, counters.nonfinite_gradients)
    samples.add("train_loss_scale_backoffs_total", rank, counters.loss_scale_backoffs)
    samples.add("train_skipped_steps_total", rank, counters.skipped_steps)
    samples.add("train_hook_overhead_seconds_total", rank, counters.hook_seconds)
    samples.add("train_records_total", rank, counters.records)
    for reason, count in {_COMMON_DROP_REASON: 0, **counters.dropped, **_dropped_by_hooks(run)}.items():
        samples.add("train_records_dropped_total", (*rank, reason), count)


def _dropped_by_hooks(run: Run) -> dict[str, float]:
    """What the hooks' own queue for logged data had to drop: they tell it as facts."""
    prefix = "outbox_dropped_"
    return {
        name.removeprefix(prefix): count
        for name, count in run.facts.items()
        if name.startswith(prefix) and isinstance(count, int | float)
    }


def _add_memory(samples: Samples, run: Run, rank: tuple[str, str], gpus: Sequence[str]) -> None:
    index = run.values.get("torch_device_index")
    if index is None:
        return
    # torch numbers the devices that its process may see; the driver, all of them. Where the driver lists the process, it knows.
    gpu = gpus[0] if len(gpus) == 1 else f"{index:.0f}"
    for field, name in _MEMORY.items():
        samples.add(name, (*rank, gpu), run.values.get(field))


def _add_amp(samples: Samples, run: Run) -> None:
    facts = {name: value for name, value in run.facts.items() if isinstance(value, int | float)}
    for fact, name in _AMP.items():
        samples.add(name, (run.name,), facts.get(fact))
    variant = run.facts.get("amp_variant")
    for precision, prefix in (("float32", "amp_base_"), (str(variant), "amp_")) if variant else ():
        rate = facts.get(f"{prefix}steps_per_second")
        samples.add("train_amp_step_duration_seconds", (run.name, precision), 1.0 / rate if rate else None)
        samples.add("train_amp_peak_memory_bytes", (run.name, precision), facts.get(f"{prefix}peak_bytes"))


def _add_info(samples: Samples, run: Run, rank: tuple[str, str], gpus: Sequence[str]) -> None:
    facts = {
        "run": rank[0],
        "rank": rank[1],
        "world_size": str(run.world_size),
        "pid": str(run.identity.pid),
        "gpu": ",".join(gpus),
        "framework": str(run.facts.get("framework", run.hello.framework)),
        "torch_version": run.hello.torch,
        "precision": str(run.facts.get("precision", "")),
        "job": str(run.facts.get("job", "")),
    }
    samples.add_named("train_info", facts, 1)


def _add_layers(samples: Samples, run: Run, rank: tuple[str, str], top_k: int) -> None:
    norms = {
        run.tensors.name(index): measured["norm"]
        for index, measured in layers.statistics(run.tables("gradient"), "gradient")
        if "norm" in measured
    }
    # A norm that is no number is the one to see: it goes before the largest.
    for layer, norm in nlargest(top_k, norms.items(), key=lambda item: (math.isnan(item[1]), item[1])):
        samples.add("train_layer_grad_norm", (*rank, layer), norm)
