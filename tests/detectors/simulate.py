"""Synthetic training runs for the detectors: what the wire would have carried, step by step."""

from __future__ import annotations

import math
import random
import struct
from array import array

from gpuwatch_hooks import wire

from gpuwatch.detectors.engine import Engine
from gpuwatch.detectors.moment import Moment
from gpuwatch.state.directories import RunDirectory
from gpuwatch.state.findings import Finding
from gpuwatch.state.identity import Hello, Identity
from gpuwatch.state.records import Event, HistogramRows, Names, Scalar, StepPart, TensorRows
from gpuwatch.state.runs import Run

ALL_COLUMNS = (1 << len(wire.TENSOR_COLUMNS)) - 1


def make_run(layers: list[str] | None = None, numels: list[int] | None = None) -> Run:
    hello = Hello(run="sim", token="t", rank=0, world_size=1, ring_id=1, monotonic_ns=0, wall_ns=10**18)
    run = Run(hello, Identity(0, 1, 1), RunDirectory("sim", "/nowhere/sim", -1, 1, resumed=False), 0.0)
    if layers:
        run.observe(Names("tensor", 1, 0, tuple(layers), tuple(numels or [4096] * len(layers))))
    return run


def rows(step: int, family: str, norms: list[float], nonfinite: list[float] | None = None, first: int = 0) -> TensorRows:
    """A TENSORS record with the given norms (and counts of entries that are not finite)."""
    cells = array("f", [0.0] * (len(norms) * len(wire.TENSOR_COLUMNS)))
    cells[0 :: len(wire.TENSOR_COLUMNS)] = array("f", norms)
    if nonfinite is not None:
        cells[wire.TENSOR_COLUMNS.index("nonfinite_count") :: len(wire.TENSOR_COLUMNS)] = array("f", nonfinite)
    return TensorRows(step, 0, family, 1, first, len(norms), ALL_COLUMNS, cells.tobytes(), step * 10**8)


def cells(step: int, family: str, table: list[dict[str, float]]) -> TensorRows:
    """A TENSORS record with any columns: one dict a tensor; what it leaves out is 0."""
    flat = array("f", [row.get(name, 0.0) for row in table for name in wire.TENSOR_COLUMNS])
    return TensorRows(step, 0, family, 1, 0, len(table), ALL_COLUMNS, flat.tobytes(), step * 10**8)


def histogram(step: int, counts: dict[int, int], tensors: int = 1) -> HistogramRows:
    """A HISTOGRAMS record of gradients: entries by the exponent of their bucket, the same for each tensor."""
    buckets = array("I", [0] * wire.HISTOGRAM_BUCKETS)
    for exponent, count in counts.items():
        buckets[min(max(exponent - wire.HISTOGRAM_FIRST_EXPONENT, 0), wire.HISTOGRAM_BUCKETS - 1)] += count
    data = buckets.tobytes() * tensors
    return HistogramRows(step, 0, "gradient", 1, 0, tensors, wire.HISTOGRAM_FIRST_EXPONENT, data, step * 10**8)


class Simulation:
    """One run under all rules (or under `settings`). `findings` keeps every change that the engine reported.

    A rule that raises fails the test, unless it is not `strict`: in a run it would be switched off, and then finds nothing.
    """

    strict = True

    def __init__(self, layers: list[str] | None = None, numels: list[int] | None = None, settings: dict | None = None) -> None:
        self.run = make_run(layers, numels)
        self.engine = Engine(settings)
        self.findings: list[Finding] = []
        self.step = 0

    def advance(
        self,
        values: dict[str, float],
        learning_rates: tuple[float, ...] = (0.1,),
        tables: list[TensorRows | HistogramRows] | None = None,
        optimizers: int = 1,
        decay: float = 0.0,
    ) -> list[Finding]:
        """One step with these fields; the findings that it changed."""
        self.step += 1
        for table in tables or ():
            self.run.observe(table)
        changed = []
        for optimizer in range(optimizers):
            groups = tuple((rate, decay) for rate in learning_rates)
            last = optimizer == optimizers - 1
            part = StepPart(self.step, optimizer, last, values, groups, self.step * 10**8)
            for step in self.run.observe(part):
                changed += self.engine.observe(self.run, step)
        self.findings += changed
        assert not self.strict or not self.engine.faults, self.engine.faults
        return changed

    def tell(self, code: str, step: int, value: float, text: str = "") -> None:
        """An event of the hooks, just before the next step."""
        self.run.observe(Event(step, code, value, text, self.step * 10**8 + 5 * 10**7))

    def log(self, tag: str, value: float) -> None:
        """A scalar that the job logs, just before the next step."""
        self.run.observe((Scalar(tag, self.step, value, self.step * 10**8 + 5 * 10**7),))

    def look(self, moment: Moment) -> list[Finding]:
        """One moment under the rules that look at moments."""
        changed = self.engine.look(self.run, moment)
        self.findings += changed
        assert not self.strict or not self.engine.faults, self.engine.faults
        return changed

    @property
    def opened(self) -> list[Finding]:
        seen: dict[int, Finding] = {}
        for finding in self.findings:
            seen.setdefault(id(finding), finding)
        return list(seen.values())

    def of(self, rule: str) -> list[Finding]:
        return [finding for finding in self.opened if finding.rule == rule]

    @property
    def alarms(self) -> list[Finding]:
        """What is above info."""
        return [finding for finding in self.opened if finding.severity != "info"]


def healthy_values(
    step: int, rng: random.Random, *, start: float = 2.3, floor: float = 0.4, noise: float = 0.15
) -> dict[str, float]:
    """Loss that decays with multiplicative noise, log-normal gradient norms (sigma 0.3) that settle, 100 ms steps."""
    decay = math.exp(-step / 800.0)
    loss = (floor + (start - floor) * decay) * math.exp(rng.gauss(0.0, noise))
    norm = (0.5 + 3.0 * math.exp(-step / 100.0)) * math.exp(rng.gauss(0.0, 0.3))
    return {
        "loss": loss,
        "grad_norm": norm,
        "grad_nonfinite_count": 0.0,
        "step_seconds": 0.1 * math.exp(rng.gauss(0.0, 0.05)),
        "data_seconds": 0.005 * math.exp(rng.gauss(0.0, 0.5)),
        "hook_seconds": 0.0005,
        "update_ratio": 1e-3 * math.exp(rng.gauss(0.0, 0.3)),
    }


def float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]
