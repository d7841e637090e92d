"""A run whose surroundings a test changes: what the rules of moments are tried on."""

from __future__ import annotations

from gpuwatch.detectors.moment import Component, Device, Moment
from gpuwatch.state.findings import Finding
from tests.detectors.simulate import Simulation

GIB = 1 << 30
SECOND = 10**9
BUSY = {
    ("utilization_ratio", ()): 0.97,
    ("power_watts", ()): 650.0,
    ("power_limit_watts", ()): 700.0,
    ("memory_size_bytes", ()): 80.0 * GIB,
    ("memory_free_bytes", ()): 30.0 * GIB,
    ("sm_active_ratio", ()): 0.8,
    ("tensor_active_ratio", ()): 0.4,
    ("row_remap_pending", ()): 0.0,
    ("row_remap_failure", ()): 0.0,
    ("ecc_errors_total", (("severity", "uncorrected"), ("lifetime", "volatile"))): 2.0,
    ("xid_errors_total", (("xid", "31"),)): 1.0,
    ("throttled_seconds_total", (("reason", "power_cap"),)): 0.0,
    ("throttled_seconds_total", (("reason", "hardware_thermal"),)): 0.0,
    ("throttled_seconds_total", (("reason", "software_thermal"),)): 0.0,
}


class Around:
    """A run that steps ten times a second on GPU 3, looked at once a second; `play` changes what is around it."""

    def __init__(self) -> None:
        self.simulation = Simulation()
        self.seconds = 0
        self.step = 0
        self.gpu = dict(BUSY)

    def play(self, seconds: int, *, steps: int = 10, gpu: dict | None = None, up: bool = True, **changes) -> None:
        """`gpu`: readings from now on, by name or by (name, label value); `changes`: fields of Moment, or callables of the
        second that give them."""
        for name, value in (gpu or {}).items():
            self._set(name, value)
        for _ in range(seconds):
            self.seconds += 1
            self.step += steps
            device = Device("3", up, "" if up else "GPU is lost", dict(self.gpu) if up else {})
            fields = {
                "monotonic_ns": self.seconds * SECOND,
                "step": self.step,
                "steps": self.step,
                "step_age_seconds": 0.05,
                "usual_seconds": 0.2,
                "longest_seconds": 0.3,
                "facts": {"precision": "bf16"},
                "devices": (device,),
                "sampler": "sampling",
                "components": {"journal": Component(True, ""), "nvml": Component(True, "")},
            }
            fields |= {name: value(self.seconds) if callable(value) else value for name, value in changes.items()}
            self.simulation.look(Moment(**fields))

    def _set(self, name, value) -> None:
        key = next(k for k in self.gpu if k[0] == name or (k[0], *(v for _, v in k[1])) == name)
        self.gpu[key] = value

    def add(self, name: str, amount: float, label: str) -> None:
        key = next(k for k in self.gpu if k[0] == name and label in dict(k[1]).values())
        self.gpu[key] += amount

    def only(self, rule: str) -> Finding:
        assert {finding.rule for finding in self.simulation.opened} == {rule}
        (finding,) = self.simulation.opened
        return finding
