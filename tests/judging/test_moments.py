"""What is around a run is gathered from the real state, and its last moment is judged before the run is forgotten."""

import struct
import time

import msgspec
import pytest
from gpuwatch_hooks import wire

from gpuwatch.detectors.engine import Engine
from gpuwatch.judging import judge as judge_module
from gpuwatch.judging.judge import Judge
from gpuwatch.judging.moments import COMPARED_POINTS, FIRST_POINTS, Moments
from gpuwatch.selfstats import SelfStats
from gpuwatch.state.durations import Durations
from gpuwatch.state.gpus import GpuProcess, HostProcess, HostSample
from gpuwatch.state.identity import Hello, Identity
from gpuwatch.state.records import Names
from gpuwatch.state.store import State


@pytest.fixture
def state(tmp_path):
    state = State(str(tmp_path / "runs"))
    yield state
    state.close()


def open_run(state, rank=0, world_size=1, token="t", pid=100):
    hello = Hello(run="digits", token=token, rank=rank, world_size=world_size, ring_id=rank + 1, monotonic_ns=0, wall_ns=0)
    return state.open_run(hello, Identity(0, pid + rank, 1))


def send(state, run, steps, **fields):
    for _ in range(steps):
        number = run.counters.records + 1
        cells = [fields.get(name, 0.0) for name in wire.STEP_FIELDS]
        mask = sum(1 << wire.STEP_FIELD_INDEX[name] for name in fields)
        payload = wire.pack_step(number, 0, wire.STEP_COMPLETE, mask, struct.pack(f"<{len(cells)}d", *cells), [])
        state.ring(run, [(number, time.monotonic_ns(), wire.KIND_STEP, payload)])


def on_gpu(state, run, label="0"):
    gpu = state.gpus.find(f"GPU-{label}", label)
    gpu.up = True
    gpu.values["utilization_ratio", ()] = 0.5
    gpu.processes[run.identity.pid] = GpuProcess(run.identity.pid, "compute")
    return gpu


def test_a_moment_is_the_run_and_what_is_around_it(state):
    stats = SelfStats()
    stats.beat("journal")
    stats.fail("nvml", "the driver does not answer")
    run, moments = open_run(state), Moments(state, stats)
    on_gpu(state, run)
    on_gpu(state, open_run(state, token="other", pid=900), "1")
    process = HostProcess(1.0, 4096, None)
    state.host = HostSample(7, 0.5, 10, 20, {run.identity.pid: process})
    send(state, run, 3, step_seconds=0.15, loss=1.0)
    ((_, moment),) = moments.take([run])
    assert (moment.step, moment.steps, moment.status, moment.values["loss"]) == (3, 3, "live", 1.0)
    assert 0.0 <= moment.step_age_seconds < 30.0
    assert (moment.usual_seconds, moment.longest_seconds) == (0.2, 0.15)
    assert [device.label for device in moment.devices] == ["0"]
    assert moment.devices[0].value("utilization_ratio") == 0.5
    assert moment.process is process
    assert moment.components["journal"].up
    assert moment.components["nvml"].error == "the driver does not answer"
    assert moment.replicas == ()


def test_a_gpu_that_is_lost_stays_with_its_run(state):
    run, moments = open_run(state), Moments(state, SelfStats())
    gpu = on_gpu(state, run)
    moments.take([run])
    gpu.mark_down("GPU is lost")
    ((_, moment),) = moments.take([run])
    assert [(device.up, device.reason) for device in moment.devices] == [(False, "GPU is lost")]
    moments.forget(run)
    ((_, moment),) = moments.take([run])
    assert moment.devices == ()


def test_a_moment_does_not_change_with_the_state(state):
    run, moments = open_run(state), Moments(state, SelfStats())
    gpu = on_gpu(state, run)
    send(state, run, 1, loss=1.0)
    ((_, moment),) = moments.take([run])
    gpu.values["utilization_ratio", ()] = 0.9
    send(state, run, 1, loss=2.0)
    assert moment.devices[0].value("utilization_ratio") == 0.5
    assert moment.values["loss"] == 1.0


def test_ranks_of_one_launch_see_each_other_and_nobody_else(state):
    first, second = (open_run(state, rank, 2) for rank in range(2))
    stranger = open_run(state, 0, 2, token="another launch", pid=500)
    for run, sizes in ((first, (4, 5)), (second, (4, 5)), (stranger, (4, 6))):
        run.observe(Names("tensor", 1, 0, ("a", "b"), sizes))
        send(state, run, 100, weight_norm=3.0, grad_norm=1.0, data_seconds=0.1, forward_seconds=0.2, step_seconds=0.5)
    (_, moment), (_, other) = Moments(state, SelfStats()).take([second, stranger])
    assert [replica.rank for replica in moment.replicas] == [0, 1]
    assert [replica.rank for replica in other.replicas] == [0]
    a, b = moment.replicas
    assert a.layout == b.layout != other.replicas[0].layout
    assert a.own_seconds == pytest.approx(30.0)
    assert a.step_seconds == pytest.approx(50.0)
    assert a.steps == 100
    assert list(a.weight_norms) == [*range(1, FIRST_POINTS + 1), *range(101 - COMPARED_POINTS, 101)]


def test_the_last_moment_of_a_run_is_judged(state):
    """What the hooks say with their last breath arrives together with the end."""
    judge = Judge(Engine(), state, SelfStats())
    state.on_step.append(judge.hear)
    run = open_run(state)
    send(state, run, 2, loss=1.0)
    judge.turn()
    event = wire.EVENT_HEAD.pack(2, wire.EVENT_CODES.index("out_of_memory"), 1.0) + b"CUDA out of memory."
    now_ns = time.monotonic_ns()
    end = wire.END_HEAD.pack(2, wire.END_REASONS.index("exception"))
    state.ring(run, [(3, now_ns, wire.KIND_EVENT, event), (4, now_ns, wire.KIND_END, end)])
    judge.turn()
    assert [(finding.rule, finding.state) for finding in state.findings.closed] == [("out_of_memory", "closed")]
    assert run.counters.findings == {"out_of_memory": 1}


def test_moments_come_once_a_second_and_not_with_each_turn(state, monkeypatch):
    judge = Judge(Engine(), state, SelfStats())
    taken = []
    monkeypatch.setattr(judge._moments, "take", lambda runs: taken.append(len(runs)) or [])
    open_run(state)
    for _ in range(5):
        judge.turn()
    assert taken == [1]
    monkeypatch.setattr(judge, "_next_moment", 0.0)
    judge.turn()
    assert taken == [1, 1]
    assert judge_module.MOMENT_SECONDS == 1.0


def test_quantiles_of_durations_are_bounds():
    durations = Durations()
    assert durations.quantile(0.99) == 0.0
    for _ in range(99):
        durations.add(0.03)
    durations.add(200.0)
    assert durations.quantile(0.5) == 0.05
    assert durations.quantile(0.99) == 0.05
    assert durations.quantile(1.0) == 300.0


def test_what_is_logged_is_counted_and_bounded(state):
    from gpuwatch.state.records import Scalar
    from gpuwatch.state.runs import MAX_LOGGED

    run = open_run(state)
    run.observe(tuple(Scalar("Loss/val", step, 1.0, step) for step in range(MAX_LOGGED + 10)))
    assert run.logged_count == MAX_LOGGED + 10
    assert [scalar.step for scalar in list(run.logged)[-2:]] == [MAX_LOGGED + 8, MAX_LOGGED + 9]
    assert len(run.logged) == MAX_LOGGED


def test_how_busy_the_gpus_were_while_steps_were_made_becomes_a_fact(state):
    run, moments = open_run(state), Moments(state, SelfStats())
    gpus = [on_gpu(state, run, label) for label in "01"]
    moments.take([run])
    assert "gpu_tensor_active_ratio" not in run.facts, "no step yet, and no GPM"
    send(state, run, 1, loss=1.0)
    moments.take([run])
    assert "gpu_tensor_active_ratio" not in run.facts, "no GPM"
    readings = [(0.1, 0.3), (0.2, 0.5), (0.6, 0.7)]
    for tensor, multiprocessors in readings:
        for number, gpu in enumerate(gpus):
            gpu.values["tensor_active_ratio", ()] = tensor + 0.1 * number
            gpu.values["sm_active_ratio", ()] = multiprocessors
        moments.take([run])
    assert run.facts["gpu_activity_seconds"] == 3
    assert run.facts["gpu_tensor_active_ratio"] == pytest.approx(0.35)
    assert run.facts["gpu_sm_active_ratio"] == pytest.approx(0.5)
    before = dict(run.facts)
    run.step = msgspec.structs.replace(run.step, monotonic_ns=0)
    moments.take([run])
    assert run.facts == before, "a validation pass is none of the steps'"
