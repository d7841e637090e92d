"""How busy a run's GPUs were while it made steps: means that are kept as facts of the run, so that they outlive the daemon."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

Facts = Mapping[str, str | int | float | bool]

_SECONDS, _TENSOR, _MULTIPROCESSOR = "gpu_activity_seconds", "gpu_tensor_active_ratio", "gpu_sm_active_ratio"


class Activity(msgspec.Struct, frozen=True):
    """Means over all of the run's GPUs, 0 to 1, and the number of seconds that they are of (GPM: on Hopper and newer)."""

    seconds: int
    tensor_ratio: float
    multiprocessor_ratio: float

    def with_second(self, tensor_ratio: float, multiprocessor_ratio: float) -> Activity:
        """The means with one second's readings more."""
        n = self.seconds
        return Activity(
            n + 1,
            (self.tensor_ratio * n + tensor_ratio) / (n + 1),
            (self.multiprocessor_ratio * n + multiprocessor_ratio) / (n + 1),
        )

    def facts(self) -> dict[str, str | int | float | bool]:
        """As a run keeps them."""
        return {_SECONDS: self.seconds, _TENSOR: self.tensor_ratio, _MULTIPROCESSOR: self.multiprocessor_ratio}


NONE = Activity(0, 0.0, 0.0)


def of(facts: Facts) -> Activity | None:
    """What a run's facts say, or None where its GPUs told nothing."""
    seconds, tensor, multiprocessor = (facts.get(name) for name in (_SECONDS, _TENSOR, _MULTIPROCESSOR))
    if isinstance(seconds, int) and isinstance(tensor, int | float) and isinstance(multiprocessor, int | float):
        return Activity(seconds, float(tensor), float(multiprocessor))
    return None
