"""What the page of one run shows beyond the live snapshot: curves over the window of its steps, layers, a layer's histogram."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from gpuwatch.exporters.live import printable
from gpuwatch.state import layers

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator

    from gpuwatch.state.findings import Finding
    from gpuwatch.state.runs import Run
    from gpuwatch.state.series import Window
    from gpuwatch.state.store import State

_HISTOGRAMS = ("gradient", "weight")


def curves(state: State, directory: str, after_step: int) -> bytes | None:
    """{"step", "facts", "curves": {name: {"steps", "values"}}, "findings"}; None when the state has no such run.

    Points behind `after_step` alone. A value that is not finite is null: whatever stands in a window was measured.
    """
    with state.lock:
        run = state.runs.get(directory)
        if run is None:
            return None
        points = {name: _after(window, after_step) for name, window in run.windows.items()}
        head = {
            "step": run.last_step,
            "status": run.status,
            "end_reason": run.end_reason,
            "window_steps": max((window.capacity for window in run.windows.values()), default=0),
            "facts": _facts(run),
        }
        findings = msgspec.json.encode([_finding(finding) for finding in state.findings.of_run(directory)])
    told = {
        name: {"steps": steps.tolist(), "values": msgspec.Raw(_numbers(values))} for name, (steps, values) in points.items()
    }
    return msgspec.json.encode({**head, "curves": told, "findings": msgspec.Raw(findings)})


def table(state: State, directory: str) -> bytes | None:
    """{"step", "layers": [[index, name, elements, gradient norm, absmax, zeros, non-finite, weight norm, update ratio]]}.

    What was not measured, or is not finite, is null. None when the state has no such run.
    """
    with state.lock:
        run = state.runs.get(directory)
        if run is None:
            return None
        names, numels = list(run.tensors.names), list(run.tensors.numels)
        families = {family: tuple(run.tables(family)) for family in ("gradient", "weight", "update")}
        step = run.last_step
    # The rows are bytes that nobody changes any more: unpacking 2,000 layers takes milliseconds, and no lock.
    gradients, weights, updates = (dict(layers.statistics(families[family], family)) for family in families)
    rows = []
    for index in sorted(gradients.keys() | weights.keys()):
        if index >= len(names):
            continue
        gradient, weight = gradients.get(index, {}), weights.get(index, {}).get("norm")
        update = updates.get(index, {}).get("norm")
        told = [gradient.get(name) for name in ("norm", "absmax", "zero_ratio", "nonfinite_count")]
        ratio = update / weight if update is not None and weight else None
        rows.append([index, names[index], numels[index], *(_plain(value) for value in (*told, weight, ratio))])
    measured = max((rows.step for tables in families.values() for rows in tables), default=0)
    return msgspec.json.encode({"step": step, "measured_step": measured, "layers": rows})


def histogram(state: State, directory: str, index: int) -> bytes | None:
    """{"name", "families": {family: {"step", "first_exponent", "counts": [64]}}} of one layer; None when there is none."""
    with state.lock:
        run = state.runs.get(directory)
        if run is None or not 0 <= index < len(run.tensors.names):
            return None
        name = run.tensors.names[index]
        families = dict(_buckets(run, index))
    return msgspec.json.encode({"name": name, "families": families})


def _buckets(run: Run, index: int) -> Iterator[tuple[str, dict[str, object]]]:
    for family in _HISTOGRAMS:
        for rows in run.histograms(family):
            if rows.first <= index < rows.first + rows.count:
                counts = next(counts for number, counts in layers.buckets(rows) if number == index)
                yield family, {"step": rows.step, "first_exponent": rows.first_exponent, "counts": counts.tolist()}


def _after(window: Window, step: int) -> tuple[array[int], array[float]]:
    steps, values = window.steps(), window.values()
    first = next((index for index, known in enumerate(steps) if known > step), len(steps)) if step else 0
    return steps[first:], values[first:]


def _numbers(values: array[float]) -> bytes:
    """A JSON array with six digits a number: a curve needs no more, and seventeen are three times the bytes."""
    return ("[" + ",".join([f"{value:.6g}" if math.isfinite(value) else "null" for value in values]) + "]").encode()


def _plain(value: float | None) -> float | None:
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def _finding(finding: Finding) -> dict[str, object]:
    return {**msgspec.structs.asdict(finding), "value": str(finding.value), "threshold": str(finding.threshold)}


def _facts(run: Run) -> dict[str, object]:
    hello = run.hello
    known: dict[str, object] = {
        "program": hello.program,
        "pid": run.identity.pid,
        "device": hello.device,
        "torch": hello.torch,
        "python": hello.python,
        "framework": hello.framework,
        "parameters": sum(run.tensors.numels),
        "layers": len(run.tensors.names),
        "started": run.started_wall_seconds,
        "log": printable(run.path),
    }
    told = {name: str(value) for name, value in run.facts.items() if not name.startswith("outbox_")}
    return {**known, "told": told}
