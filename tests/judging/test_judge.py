"""Steps to the rules and findings back: in order, bounded, and closed when the run ends."""

import math
import struct
import time

import pytest
from gpuwatch_hooks import wire

from gpuwatch.detectors.engine import Engine
from gpuwatch.judging import judge as judge_module
from gpuwatch.judging.judge import Judge
from gpuwatch.selfstats import SelfStats
from gpuwatch.state.identity import Hello, Identity
from gpuwatch.state.store import State
from tests.intake.conftest import step_record


@pytest.fixture
def state(tmp_path):
    state = State(str(tmp_path / "runs"))
    yield state
    state.close()


@pytest.fixture
def judge(state):
    judge = Judge(Engine(), state, SelfStats())
    state.on_step.append(judge.hear)
    return judge


def open_run(state, ring_id=1):
    hello = Hello(run="digits", token="", rank=0, world_size=1, ring_id=ring_id, monotonic_ns=0, wall_ns=0)
    return state.open_run(hello, Identity(0, ring_id, 1))


def send(state, run, *losses):
    for loss in losses:
        number = run.counters.records + 1
        state.ring(run, [(number, time.monotonic_ns(), wire.KIND_STEP, step_record(number, loss))])


def test_a_finding_opens_is_known_to_the_state_and_closes_with_its_run(state, judge):
    run = open_run(state)
    send(state, run, 1.0, 0.9, math.nan)
    judge.turn()
    (finding,) = state.findings.active.values()
    assert (finding.rule, finding.step, finding.run) == ("nonfinite_loss", 3, "digits")
    state.ring(run, [(4, 4, wire.KIND_END, wire.END_HEAD.pack(3, 0))])
    judge.turn()
    assert not state.findings.active
    assert [finding.rule for finding in state.findings.closed] == ["nonfinite_loss"]
    judge.turn()
    assert len(state.findings.closed) == 1


def test_the_last_step_is_judged_before_the_end_is(state, judge):
    """A part that waits for another optimizer becomes a step with the run's end: in one piece."""
    run = open_run(state)
    send(state, run, 1.0)
    judge.turn()
    fields = [0.0] * len(wire.STEP_FIELDS)
    fields[wire.STEP_FIELD_INDEX["loss"]] = math.nan
    part = wire.pack_step(2, 0, 0, 1 << wire.STEP_FIELD_INDEX["loss"], struct.pack(f"<{len(fields)}d", *fields), [])
    state.ring(run, [(2, 2, wire.KIND_STEP, part), (3, 3, wire.KIND_END, wire.END_HEAD.pack(2, 0))])
    judge.turn()
    judge.turn()
    assert [finding.rule for finding in state.findings.closed] == ["nonfinite_loss"]
    assert not state.findings.active


def test_steps_beyond_what_may_wait_are_counted(state, monkeypatch):
    monkeypatch.setattr(judge_module, "MAX_WAITING_STEPS", 10)
    stats = SelfStats()
    judge = Judge(Engine(), state, stats)
    state.on_step.append(judge.hear)
    send(state, open_run(state), *[1.0] * 25)
    assert stats.value("steps_not_judged") == 15
    judge.turn()
    assert not judge._waiting


def test_a_turn_is_asked_for_before_too_much_waits(state, monkeypatch):
    """Also before the steps of a run with large tables are too many bytes: see the test below."""
    monkeypatch.setattr(judge_module, "MAX_WAITING_STEPS", 100)
    asked = []
    judge = Judge(Engine(), state, SelfStats())
    judge.hurry = lambda: asked.append(len(judge._waiting))
    state.on_step.append(judge.hear)
    run = open_run(state)
    send(state, run, *[1.0] * 25)
    assert not asked
    send(state, run, 1.0)
    assert asked == [26]
    judge.turn()
    send(state, run, 1.0)
    assert asked == [26]


def test_the_tables_that_wait_are_bounded_in_bytes_and_carry_no_histograms(state, monkeypatch):
    monkeypatch.setattr(judge_module, "MAX_WAITING_BYTES", 1000)
    stats = SelfStats()
    judge = Judge(Engine(), state, stats)
    state.on_step.append(judge.hear)
    run = open_run(state)
    for step in range(1, 11):
        tables = wire.TENSORS_HEAD.pack(step, 0, 0, 1, 0, 10, 0xFF) + bytes(320)
        shapes = wire.HISTOGRAMS_HEAD.pack(step, 0, 0, 1, 0, 10, -48) + bytes(2560)
        kinds = [(wire.KIND_TENSORS, tables), (wire.KIND_HISTOGRAMS, shapes), (wire.KIND_STEP, step_record(step))]
        state.ring(run, [(3 * step + i - 2, step, kind, payload) for i, (kind, payload) in enumerate(kinds)])
    assert [(step.step, len(step.tensors), step.histograms) for _, step, _ in judge._waiting] == [(n, 1, ()) for n in (1, 2, 3)]
    assert stats.value("steps_not_judged") == 7
    judge.turn()
    assert judge._waiting_bytes == 0
