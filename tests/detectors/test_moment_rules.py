"""The rules about what is around a run: each finds its fault, closes again, and spares its neighbours."""

from __future__ import annotations

import msgspec
import pytest

from gpuwatch.detectors.moment import Component, Device, Moment, Replica
from gpuwatch.state.findings import Finding
from gpuwatch.state.gpus import HostProcess, HostSample
from gpuwatch.state.records import Event
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


@pytest.fixture
def around() -> Around:
    made = Around()
    made.play(400)
    assert made.simulation.opened == [], "twice the time that the slowest of these rules looks at, and nothing is wrong"
    return made


# -------------------------------------------------------------------------------------------------------------- speed
def test_a_run_that_hangs_is_told_and_closes_when_it_goes_on(around: Around) -> None:
    stopped = around.seconds
    around.play(59, steps=0, step_age_seconds=lambda now: now - stopped)
    assert around.simulation.opened == []
    around.play(3, steps=0, step_age_seconds=lambda now: now - stopped)
    finding = around.only("stalled")
    assert (finding.severity, finding.first_step) == ("critical", 4000)
    around.play(5)
    assert finding.state == "closed"


@pytest.mark.parametrize(
    "excuse",
    [{"usual_seconds": 30.0}, {"longest_seconds": 200.0}, {"steps": 0, "step": 1}, {"status": "finished"}],
    ids=["long steps", "a validation that takes as long", "before the second step", "an ended run"],
)
def test_silences_that_are_no_hang(excuse: dict) -> None:
    around = Around()
    if "steps" in excuse:
        fields = {"devices": (), "sampler": "absent", "monotonic_ns": SECOND, "step_age_seconds": 300.0, "step": 1, "steps": 1}
        around.simulation.look(Moment(**fields))
    else:
        around.play(10, **excuse)
        around.play(5, step_age_seconds=250.0, **excuse)
    assert around.simulation.of("stalled") == []


def test_a_validation_that_was_learned_once_is_remembered() -> None:
    around = Around()
    around.play(10, longest_seconds=200.0)
    around.play(5, step_age_seconds=250.0)
    assert around.simulation.opened == []


def test_a_collective_that_waits_spins(around: Around) -> None:
    stopped = around.seconds
    gpu = {"utilization_ratio": 1.0, "power_watts": 120.0}
    around.play(65, steps=0, gpu=gpu, step_age_seconds=lambda now: now - stopped)
    rules = {finding.rule: finding for finding in around.simulation.opened}
    assert set(rules) == {"stalled", "spin_wait"}
    assert (rules["spin_wait"].severity, rules["spin_wait"].value) == ("critical", pytest.approx(120 / 700))
    around.play(10, gpu={"power_watts": 650.0})
    assert rules["spin_wait"].state == "closed"


@pytest.mark.parametrize("gpu", [{"power_watts": 400.0}, {"utilization_ratio": 0.3, "power_watts": 120.0}])
def test_a_hang_that_does_not_spin(around: Around, gpu: dict) -> None:
    stopped = around.seconds
    around.play(90, steps=0, gpu=gpu, step_age_seconds=lambda now: now - stopped)
    assert around.simulation.of("spin_wait") == []


def test_a_gpu_that_is_hardly_used(around: Around) -> None:
    around.play(301, gpu={"utilization_ratio": 0.05})
    around.play(30)
    finding = around.only("gpu_idle")
    assert finding.value < 0.15
    around.play(400, gpu={"utilization_ratio": 0.9})
    assert finding.state == "closed"


def test_a_gpu_that_idles_while_the_run_validates_or_starts() -> None:
    around = Around()
    around.play(110, gpu={"utilization_ratio": 0.0})  # the first two minutes
    around.play(200, gpu={"utilization_ratio": 0.8})
    around.play(600, steps=0, step_age_seconds=61.0, longest_seconds=900.0, gpu={"utilization_ratio": 0.0})
    assert around.simulation.opened == []


# -------------------------------------------------------------------------------------------------------------- ranks
def replicas(seconds: int, own: tuple[float, ...], *, step: float = 0.1, **changes) -> tuple[Replica, ...]:
    """Ranks that have stepped every `step` seconds since the beginning, with these seconds of their own in each."""
    count = int(seconds / step)
    made = [Replica(rank, count, own[rank] * count, step * count, 1, False, {}, {}) for rank in range(len(own))]
    return tuple(msgspec.structs.replace(replica, **changes) for replica in made)


@pytest.mark.parametrize(("own", "found"), [((0.02, 0.06), 1), ((0.02, 0.028), 0), ((0.002, 0.006), 0), ((0.06, 0.02), 0)])
def test_a_rank_that_holds_the_others_up(own: tuple[float, ...], found: int) -> None:
    around = Around()
    around.play(20, rank=1, replicas=lambda now: replicas(now, own))
    assert len(around.simulation.opened) == found
    if found:
        finding = around.only("straggler")
        assert (finding.severity, finding.value) == ("warning", pytest.approx(3.0))
        assert "rank 0" in finding.summary
        # from now on it is as fast as the others
        then = replicas(20, own)

        def mended(now: int) -> tuple[Replica, ...]:
            more = replicas(now - 20, (0.02, 0.02))
            return tuple(
                msgspec.structs.replace(
                    a,
                    steps=a.steps + b.steps,
                    own_seconds=a.own_seconds + b.own_seconds,
                    step_seconds=a.step_seconds + b.step_seconds,
                )
                for a, b in zip(then, more, strict=True)
            )

        around.play(40, rank=1, replicas=mended)
        assert finding.state == "closed"


def test_pipeline_stages_are_not_compared() -> None:
    around = Around()

    def stages(now: int) -> tuple[Replica, ...]:
        first, second = replicas(now, (0.02, 0.06))
        return first, msgspec.structs.replace(second, layout=2)

    around.play(30, rank=1, replicas=stages)
    assert around.simulation.opened == []


def norms(weights, gradients=lambda rank, step: 1.0 + rank, ranks: int = 2, **changes):
    """Replicas whose norms at each step are given by functions of (rank, step); every 10th step has been measured."""

    def at(now: int) -> tuple[Replica, ...]:
        steps = range(10, now * 10 + 1, 10)
        return tuple(
            Replica(
                rank,
                now * 10,
                1.0,
                1.0,
                changes.get("layout", lambda _: 1)(rank),
                changes.get("sharded", False),
                {step: weights(rank, step) for step in steps},
                {step: gradients(rank, step) for step in steps},
            )
            for rank in range(ranks)
        )

    return at


def test_replicas_that_drift_apart_are_told_by_the_higher_rank() -> None:
    def weights(rank: int, step: int) -> float:
        return 10.0 + 0.01 * rank * max(0, step - 100) / 10

    for rank, found in ((1, 1), (0, 0)):
        around = Around()
        around.play(20, rank=rank, replicas=norms(weights))
        assert len(around.simulation.opened) == found


def test_the_first_step_of_a_divergence_is_named() -> None:
    around = Around()
    around.play(20, rank=1, replicas=norms(lambda rank, step: 10.0 + (0.1 if rank and step > 100 else 0.0)))
    finding = around.only("replica_divergence")
    assert (finding.severity, finding.first_step) == ("critical", 110)
    assert finding.value == pytest.approx(0.1 / 10.1)


def test_ranks_that_never_agreed_are_replicas_only_when_their_gradients_agree() -> None:
    around = Around()
    around.play(20, rank=1, replicas=norms(lambda rank, step: 10.0 + rank))
    assert around.simulation.opened == [], "tensor parallel, or jobs that have nothing in common"
    around = Around()
    around.play(20, rank=1, replicas=norms(lambda rank, step: 10.0 + rank, lambda rank, step: 1.0 / step))
    assert around.only("replica_divergence").severity == "critical"


@pytest.mark.parametrize("case", ["equal", "noise", "sharded", "layouts"])
def test_ranks_that_may_differ(case: str) -> None:
    def weights(rank: int, step: int) -> float:
        return 10.0 + rank * {"equal": 0.0, "noise": 1e-6}.get(case, 0.1 if step > 50 else 0.0)

    changes = {"sharded": {"sharded": True}, "layouts": {"layout": lambda rank: rank}}.get(case, {})
    around = Around()
    around.play(20, rank=1, replicas=norms(weights, **changes))
    assert around.simulation.opened == []


# ------------------------------------------------------------------------------------------------------------- memory
def test_little_memory_left(around: Around) -> None:
    around.play(19, gpu={"memory_free_bytes": 2.0 * GIB})
    assert around.simulation.opened == []
    around.play(11)
    finding = around.only("gpu_memory_headroom")
    assert finding.value == pytest.approx(2 / 80)
    around.play(30, gpu={"memory_free_bytes": 20.0 * GIB})
    assert finding.state == "closed"


def test_what_torch_holds_in_reserve_is_left(around: Around) -> None:
    values = {"torch_reserved_bytes": 70.0 * GIB, "torch_allocated_peak_bytes": 60.0 * GIB}
    around.play(60, gpu={"memory_free_bytes": 2.0 * GIB}, values=values)
    assert around.simulation.opened == []


def test_reserve_that_cannot_be_used_is_fragmentation(around: Around) -> None:
    values = {"torch_reserved_bytes": 70.0 * GIB, "torch_allocated_peak_bytes": 40.0 * GIB}
    around.play(30, gpu={"memory_free_bytes": 5.0 * GIB}, values=values)
    finding = around.only("memory_fragmentation")
    assert finding.value == pytest.approx(30 / 80)
    around.play(30, values={**values, "torch_reserved_bytes": 45.0 * GIB})
    assert finding.state == "closed"


def test_a_reserve_on_a_roomy_gpu_is_none(around: Around) -> None:
    around.play(60, values={"torch_reserved_bytes": 50.0 * GIB, "torch_allocated_peak_bytes": 20.0 * GIB})
    assert around.simulation.opened == []


def host(seconds: int, resident: float, *, used: float = 0.3) -> dict:
    process = HostProcess(1.0, int(resident), None)
    return {"process": process, "host": HostSample(seconds * SECOND, 0.1, int(64 * used * GIB), 64 * GIB, {1: process})}


def grow(around: Around, seconds: int, resident) -> None:
    for _ in range(seconds):
        around.play(1, steps=50, **host(around.seconds + 1, resident(around.seconds + 1)))


def test_a_process_that_grows_with_each_step(around: Around) -> None:
    start = around.seconds
    grow(around, 16, lambda now: GIB + (now - start) * 30 * 2**20)
    finding = around.only("memory_leak")
    assert (finding.severity, finding.layer) == ("info", "")
    grow(around, 16, lambda _now: 1.4 * GIB)
    assert finding.state == "closed"


def test_a_leak_that_takes_much_of_the_host_is_a_warning(around: Around) -> None:
    start = around.seconds
    grow(around, 16, lambda now: GIB + (now - start) * 1.5 * GIB)
    assert around.only("memory_leak").severity == "warning"


def test_device_memory_that_grows_slowly_is_found_over_minutes(around: Around) -> None:
    around.play(400, values=lambda now: {"torch_allocated_bytes": 4.0 * GIB + (now - 400) * 2 * 2**20 + (now % 2) * 2**24})
    assert around.only("memory_leak").severity == "warning"


@pytest.mark.parametrize(
    "resident",
    [
        lambda now: GIB + 200 * 2**20 * (now % 3),
        lambda now: 2 * GIB - GIB * 0.6 ** (now - 400),
        lambda now: GIB + now * 2**16,
        lambda now: GIB + 2**28 * (now > 406),
    ],
    ids=["up and down", "a cache that fills", "next to nothing", "once"],
)
def test_growth_that_is_no_leak(around: Around, resident) -> None:
    grow(around, 30, resident)
    assert around.simulation.opened == []


def test_out_of_memory_is_told_with_the_errors_own_words(around: Around) -> None:
    event = Event(4000, "out_of_memory", 1.0, "CUDA out of memory. Tried to allocate 20 GiB.", 400 * SECOND)
    around.play(1, status="failed", events=[event])
    finding = around.only("out_of_memory")
    assert (finding.severity, finding.first_step) == ("critical", 4000)
    assert "Tried to allocate 20 GiB" in finding.summary


def test_a_process_that_vanished_from_a_full_host(around: Around) -> None:
    around.play(1, **host(401, 40 * GIB, used=0.99))
    around.play(1, status="lost")
    assert "out-of-memory killer" in around.only("out_of_memory").summary


@pytest.mark.parametrize(("resident", "used"), [(40 * GIB, 0.9), (GIB, 0.99)])
def test_a_process_that_vanished_for_another_reason(around: Around, resident: float, used: float) -> None:
    around.play(1, **host(401, resident, used=used))
    around.play(1, status="lost")
    assert around.simulation.opened == []


# ------------------------------------------------------------------------------------------------------------- device
def test_a_lost_gpu(around: Around) -> None:
    around.play(5, up=False)
    finding = around.only("gpu_lost")
    assert (finding.severity, "GPU is lost" in finding.summary) == ("critical", True)
    around.play(5)
    assert finding.state == "closed"


def test_a_sampler_that_stands_still_loses_no_gpu(around: Around) -> None:
    around.play(10, up=False, sampler="paused")
    around.play(3, up=False)  # a driver that is reloaded
    around.play(5)
    assert around.simulation.opened == []


@pytest.mark.parametrize(("xid", "severity"), [("79", "critical"), ("94", "warning"), ("31", "info")])
def test_xids(around: Around, xid: str, severity: str) -> None:
    key = ("xid_errors_total", (("xid", xid),))
    around.gpu[key] = around.gpu.get(key, 0.0) + 1.0
    around.play(5)
    finding = around.only("gpu_xid")
    assert finding.severity == severity
    assert f"Xid {xid}" in finding.summary
    around.play(300)
    assert finding.state == "closed"


def test_errors_from_before_the_run_are_not_its_own() -> None:
    around = Around()  # its GPU has an Xid 31 and two uncorrected errors already
    around.play(50)
    assert around.simulation.opened == []


def test_memory_errors(around: Around) -> None:
    around.add("ecc_errors_total", 3.0, "uncorrected")
    around.play(5)
    finding = around.only("gpu_ecc")
    assert (finding.severity, finding.value) == ("critical", 3.0)
    around.play(300)
    assert finding.state == "closed"


@pytest.mark.parametrize(
    ("reason", "share", "severity"),
    [
        ("hardware_thermal", 0.3, "warning"),
        ("hardware_thermal", 0.05, ""),
        ("software_thermal", 0.7, "info"),
        ("software_thermal", 0.3, ""),
        ("power_cap", 1.0, ""),
    ],
)
def test_throttling(around: Around, reason: str, share: float, severity: str) -> None:
    for _ in range(70):
        around.add("throttled_seconds_total", share, reason)
        around.play(1)
    assert [finding.severity for finding in around.simulation.opened] == ([severity] if severity else [])
    around.play(130)
    assert all(finding.state == "closed" for finding in around.simulation.opened)


def test_a_row_remap_is_a_warning_and_a_failed_one_critical(around: Around) -> None:
    around.play(2, gpu={"row_remap_pending": 1.0})
    finding = around.only("gpu_row_remap")
    assert finding.severity == "warning"
    around.play(2, gpu={"row_remap_failure": 1.0})
    assert finding.severity == "critical"
    around.play(20, gpu={"row_remap_pending": 0.0, "row_remap_failure": 0.0})
    assert finding.state == "closed"


def test_tensor_cores_that_idle_under_float32(around: Around) -> None:
    idle = {"tensor_active_ratio": 0.0}
    around.play(130, gpu=idle, facts={"precision": "fp32"})
    finding = around.only("amp_unused")
    assert finding.severity == "info"
    around.play(30, gpu={"tensor_active_ratio": 0.4}, facts={"precision": "fp32"})
    assert finding.state == "closed"


@pytest.mark.parametrize(
    ("gpu", "precision"),
    [({"tensor_active_ratio": 0.2}, "fp32"), ({"tensor_active_ratio": 0.0}, "bf16"), ({"tensor_active_ratio": 0.0}, "fp64")],
)
def test_tensor_cores_that_work_or_need_not(around: Around, gpu: dict, precision: str) -> None:
    around.play(200, gpu=gpu, facts={"precision": precision})
    assert around.simulation.opened == []


def test_autocast_that_was_measured_to_bring_nothing(around: Around) -> None:
    facts = {"precision": "bf16", "amp_speedup_ratio": 0.98, "amp_speedup_high": 1.01, "amp_memory_saving_ratio": 0.4}
    around.play(5, facts=facts)
    finding = around.only("amp_no_speedup")
    assert (finding.severity, finding.value) == ("info", 1.01)
    assert "saves 40% of the memory" in finding.summary
    around.play(60, facts={**facts, "amp_speedup_ratio": 1.4, "amp_speedup_high": 1.5})
    assert finding.state == "closed"


@pytest.mark.parametrize(
    "facts",
    [
        {"precision": "bf16", "amp_speedup_ratio": 1.02, "amp_speedup_high": 1.2},
        {"precision": "fp32", "amp_speedup_ratio": 0.9, "amp_speedup_high": 0.95},
        {"precision": "bf16"},
        {"precision": "bf16", "amp_speedup_ratio": "", "amp_speedup_high": 0.5},
    ],
)
def test_autocast_that_helps_may_help_is_not_used_or_was_not_measured(around: Around, facts: dict) -> None:
    around.play(20, facts=facts)
    assert around.simulation.opened == []


def test_a_gpu_without_tensor_cores_or_without_gpm_says_nothing(around: Around) -> None:
    del around.gpu["tensor_active_ratio", ()]
    around.play(200, facts={"precision": "fp32"})
    assert around.simulation.opened == []


# --------------------------------------------------------------------------------------------------------- the daemon
def test_a_journal_that_is_paused(around: Around) -> None:
    paused = {"journal": Component(False, "paused for 1 runs: ENOSPC")}
    around.play(5, components=paused)
    finding = around.only("exporter_paused")
    assert "ENOSPC" in finding.summary
    around.play(5)
    assert finding.state == "closed"


@pytest.mark.parametrize("change", [{"sampler": "failing"}, {"components": {"host": Component(False, "no sign of life")}}])
def test_samplers_that_get_nothing(around: Around, change: dict) -> None:
    around.play(15, **change)
    finding = around.only("sampler_stuck")
    around.play(5)
    assert finding.state == "closed"


def test_a_part_that_has_not_begun_and_a_node_without_a_driver(around: Around) -> None:
    around.play(
        60, components={"tensorboard": Component(False, ""), "nvml": Component(False, "")}, sampler="absent", devices=()
    )
    assert around.simulation.opened == []
