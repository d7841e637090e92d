"""One station of the roadmap: what the run shows about it, and what to do there."""

from __future__ import annotations

import msgspec

from gpuwatch.history.matrix_share import MatrixShare
from gpuwatch.history.measures import Measures
from gpuwatch.history.past import Past
from gpuwatch.state.activity import Activity

#: done: the run does it; next: worth doing now; later: worth doing after something else; idle: would bring nothing here;
#: unknown: the run does not show enough.
STANDINGS = ("done", "next", "later", "idle", "unknown")
MEASURED, ESTIMATE = "measured", "estimate"


class Gain(msgspec.Struct, frozen=True):
    """What the station brings, in words, and whether that was measured in this run or is a bound from what was."""

    text: str
    basis: str  # MEASURED | ESTIMATE


class Station(msgspec.Struct, frozen=True):
    name: str
    standing: str  # one of STANDINGS
    evidence: tuple[str, ...]  # sentences with numbers that were measured in this run
    action: str = ""
    gain: Gain | None = None


class Subject(msgspec.Struct, frozen=True):
    """The run under advice: rank 0's past and numbers, and the median step time of every rank, in seconds."""

    past: Past
    measures: Measures
    rank_step_seconds: dict[int, float]
    world_size: int
    device: str
    matrix: MatrixShare | None = None  # of rank 0's last trace
    activity: Activity | None = None  # of rank 0's GPUs
    ended: bool = False  # nothing can be measured in it any more

    @property
    def run(self) -> str:
        """Its name, for commands that somebody can paste."""
        return self.past.hello.run if self.past.hello is not None else "RUN"

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")


def head_room(past: Past) -> str:
    """How much of the device's memory training has used at most, as a sentence; empty where that is not known."""
    whole, name = past.facts.get("device_memory_bytes"), past.facts.get("device_name")
    peaks = [value for value in past.values("torch_allocated_peak_bytes") if value > 0.0]
    if not peaks or not isinstance(whole, int | float) or whole <= 0:
        return ""
    return f"Tensors took {max(peaks) / 2**30:.1f} of the {whole / 2**30:.0f} GiB of {name} ({max(peaks) / whole:.0%})."


def phase_shares(past: Past) -> dict[str, float]:
    """Share of the recorded step time in each phase, 0 to 1; empty when phases were not measured."""
    totals = {
        name: sum(value for value in past.values(f"{name}_seconds") if value > 0.0)
        for name in ("data", "forward", "backward", "optimizer", "other")
    }
    whole = sum(totals.values())
    return {name: total / whole for name, total in totals.items()} if whole > 0.0 else {}
