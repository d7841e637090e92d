"""The rules about speed, ranks and memory: each finds its fault, closes again, and spares its neighbours."""

from __future__ import annotations

import msgspec
import pytest

from gpuwatch.detectors.moment import Moment, Replica
from gpuwatch.state.gpus import HostProcess, HostSample
from gpuwatch.state.records import Event
from tests.detectors.around import GIB, SECOND, Around


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
