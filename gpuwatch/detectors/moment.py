"""What the rules see of one moment: a run, and everything around it, as plain copies that nobody else changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from gpuwatch.state.gpus import HostProcess, HostSample, Key
from gpuwatch.state.records import Event


class Device(msgspec.Struct, frozen=True):
    """A GPU that the run's process is on, or was on before the GPU stopped answering."""

    label: str  # the contract's `gpu`
    up: bool
    reason: str  # why it is down
    values: Mapping[Key, float]  # as in state/gpus.py: gauges and counters by (name, labels)

    def value(self, name: str, **labels: str) -> float | None:
        """One reading; None when the device does not tell it."""
        return self.values.get((name, tuple(labels.items())))

    def readings(self, name: str) -> dict[str, float]:
        """Every reading of one name that has a single label, by the label's value."""
        return {labels[0][1]: value for (key, labels), value in self.values.items() if key == name and len(labels) == 1}


class Replica(msgspec.Struct, frozen=True):
    """One rank of the run, as far as this node knows it."""

    rank: int
    steps: int  # so far
    own_seconds: float  # so far, in data loading and forward passes: the phases in which no rank waits for another
    step_seconds: float  # so far, all phases
    layout: int  # the same number for ranks whose optimizers hold tensors of the same sizes in the same order
    sharded: bool  # its norms are of its own part of each tensor
    weight_norms: Mapping[int, float]  # step -> L2 of all weights, for the last steps at which it was measured
    grad_norms: Mapping[int, float]  # the same of the gradients


class Component(msgspec.Struct, frozen=True):
    """A part of the daemon."""

    up: bool
    error: str


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """One run, once a second. `values` and `facts` are the run's last known step fields and facts."""

    monotonic_ns: int
    status: str = "live"  # live | finished | failed | lost; another than live only in the last moment
    step: int = 0  # the last one; 0: none yet
    steps: int = 0  # counted
    step_age_seconds: float | None = None  # since the last step; None before the first
    usual_seconds: float = 0.0  # longest step but for the slowest 1 %
    longest_seconds: float = 0.0  # longest of the last steps: validation passes and checkpoints are in it
    values: Mapping[str, float] = {}
    facts: Mapping[str, str | int | float | bool] = {}
    events: Sequence[Event] = ()
    rank: int = 0
    replicas: tuple[Replica, ...] = ()  # every live rank of this run on this node, this one included
    devices: tuple[Device, ...] = ()
    process: HostProcess | None = None
    host: HostSample | None = None
    sampler: str = ""  # Gpus.state: sampling, failing, absent ...
    components: Mapping[str, Component] = {}

    def value(self, name: str) -> float | None:
        """A step field as last measured."""
        return self.values.get(name)
