"""The state from outside: runs open, fill, end and come back; the journal first."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from gpuwatch_hooks import wire

from gpuwatch.state import summary
from gpuwatch.state.findings import Finding
from gpuwatch.state.journal_reader import JournalReader
from gpuwatch.state.records import Meta, Names, Scalar
from gpuwatch.state.runs import Run
from gpuwatch.state.store import MAX_ENDED_RUNS, SUMMARY_SECONDS, RefusedError, State
from tests.state.recorded import SECOND_NS, Clock, hello, identity, slots, step_payload, steps, tensors_payload

MakeState = Callable[..., State]


def end(last_step: int, reason: int, sequence: int) -> list[tuple[int, int, int, bytes]]:
    return slots([(wire.KIND_END, wire.END_HEAD.pack(last_step, reason))], sequence)


def summary_of(run: Run) -> summary.RunSummary:
    read = summary.decode((Path(run.path) / "run.json").read_bytes())
    assert read is not None
    return read


def finding(state: str = "active", step: int = 3) -> Finding:
    return Finding("loss_spike", "warning", step, step, step, "loss", 9.0, 1.5, "It jumped.", "Look.", state=state, time=1.0)


def test_a_run_is_counted_and_shown(make_state: MakeState) -> None:
    state = make_state()
    run = state.open_run(hello(), identity())
    state.control(run, 1, Names("tensor", 1, 0, ("a", "b"), (3, 4)))
    state.control(run, 2, (Scalar("acc", 5, 0.5, 0), Scalar("acc", 6, math.nan, 0)))
    state.control(run, 3, Meta({"precision": "bf16"}))
    state.ring(
        run, steps(1, 9, step_seconds=0.1, forward_seconds=0.04, grad_nonfinite_count=2.0, skipped=1.0, loss_scale_backoffs=1.0)
    )
    assert run.step is not None
    assert (run.step.step, run.values["loss"], run.learning_rates) == (9, 1.0 / 9, [(0.1, 0.0)])
    counters = run.counters
    assert (counters.steps, counters.records, counters.nonfinite_gradients, counters.skipped_steps) == (9, 9, 18, 9)
    assert counters.loss_scale_backoffs == 9
    assert counters.phase_seconds["forward"] == pytest.approx(0.36)
    assert run.durations.count == 9
    assert run.durations.sum_seconds == pytest.approx(0.9)
    assert (run.tensors.names, run.facts) == (["a", "b"], {"precision": "bf16"})
    assert math.isnan(run.scalars["acc"].value)
    assert (run.acknowledged, run.resume_sequence) == (3, 9)
    assert run.windows["loss"].values().tolist() == [1.0 / n for n in range(1, 10)]


def test_the_journal_has_a_record_before_anybody_hears_of_it(make_state: MakeState) -> None:
    state = make_state()
    run = state.open_run(hello(), identity())
    journaled: list[int] = []

    def on_step(of: Run, _step: object) -> None:
        reader = JournalReader(Path(of.path) / "journal")
        journaled.append(max(entry.frame.sequence for entry in reader.read()))
        reader.close()

    state.on_step.append(on_step)
    state.ring(run, steps(1, 3))
    assert journaled == [3, 3, 3]


def test_the_same_process_is_the_same_run_and_another_is_another(make_state: MakeState) -> None:
    state = make_state()
    run = state.open_run(hello(), identity())
    assert state.open_run(hello(), identity()) is run
    assert state.open_run(hello(), identity(start_ticks=100)).directory == "digits-2", "a pid that was used again"
    assert state.open_run(hello(ring_id=8), identity()).directory == "digits-3", "attached a second time"
    assert state.open_run(hello(), identity(uid=1001)).directory == "digits-4", "another user's claim"


def test_a_daemon_that_was_killed_leaves_nothing_acknowledged_behind(make_state: MakeState) -> None:
    first = make_state()
    run = first.open_run(hello(), identity())
    first.control(run, 1, Names("tensor", 1, 0, ("a",), (3,)))
    first.ring(run, steps(1, 40, step_seconds=0.1))
    first.control(run, 2, (Scalar("acc", 5, 0.5, 0),))
    first.find(run, finding())
    first.save(run)
    first.ring(run, steps(41, 70, step_seconds=0.1))
    first.control(run, 3, Meta({"precision": "fp32"}))
    first.find(run, finding(step=50))
    # No close: the first daemon is dead, and run.json says 40 steps.
    assert summary_of(run).counters.steps == 40
    assert summary_of(run).checkpoint is not None
    second = make_state()
    again = second.open_run(hello(), identity())
    assert again.directory == run.directory
    assert (again.acknowledged, again.resume_sequence, again.last_step) == (3, 70, 70)
    assert (again.counters.steps, again.counters.records, again.counters.record_bytes) == (70, 70, run.counters.record_bytes)
    assert again.durations.counts == run.durations.counts
    assert (again.tensors.names, again.facts, again.scalars["acc"].value) == (["a"], {"precision": "fp32"}, 0.5)
    assert again.counters.findings == {"loss_spike": 1}
    assert [found.state for found in second.findings.of_run("digits")] == ["closed"]
    second.ring(again, steps(71, 72, step_seconds=0.1))
    assert again.counters.steps == 72


def test_a_step_that_was_open_at_the_crash_is_whole_after_it(make_state: MakeState) -> None:
    first = make_state()
    run = first.open_run(hello(), identity())
    first.ring(run, slots([(1, step_payload(1, {"grad_norm": 3.0}, 0, complete=False))]))
    first.save(run)
    second = make_state()
    again = second.open_run(hello(), identity())
    second.ring(again, slots([(1, step_payload(1, {"grad_norm": 4.0}, 1))], 2))
    assert again.values["grad_norm"] == 5.0
    assert again.counters.steps == 1


def test_without_run_json_the_whole_journal_is_replayed(make_state: MakeState) -> None:
    first = make_state()
    run = first.open_run(hello(), identity())
    first.ring(run, steps(1, 30))
    first.save(run)
    known = summary_of(run)
    known.checkpoint.offset = 10**9  # a power failure kept run.json and lost the end of the journal
    (Path(run.path) / "run.json").write_bytes(summary.encode(known))
    again = make_state().open_run(hello(), identity())
    assert (again.counters.steps, again.resume_sequence) == (30, 30)


def test_an_end_finishes_a_run_and_silence_of_the_process_loses_it(make_state: MakeState) -> None:
    state = make_state()
    ends = {0: ("finished", "exit"), 1: ("failed", "exception"), 2: ("finished", "detached")}
    for reason, expected in ends.items():
        run = state.open_run(hello(), identity(pid=reason + 1))
        state.ring(run, end(0, reason, 1))
        state.process_gone(run)
        assert (run.status, run.end_reason) == expected
        assert summary_of(run).status == expected[0]
    lost = state.open_run(hello(), identity(pid=50))
    state.ring(lost, slots([(1, step_payload(1, {"loss": 1.0}, complete=False))]))
    assert lost.counters.steps == 0
    state.process_gone(lost)
    assert (lost.status, lost.counters.steps) == ("lost", 1)


def test_what_cannot_be_decoded_is_counted_and_passed_by(make_state: MakeState) -> None:
    state = make_state()
    run = state.open_run(hello(), identity())
    state.ring(run, [(1, 0, 1, b"short"), (2, 0, 99, b""), *steps(3, 3)])
    assert run.counters.dropped["undecodable"] == state.undecodable_records == 2
    assert run.counters.steps == 1


def test_a_users_live_runs_are_limited(make_state: MakeState) -> None:
    state = make_state(runs_per_uid=2)
    runs = [state.open_run(hello(ring_id=n), identity(pid=n)) for n in (1, 2)]
    with pytest.raises(RefusedError, match="runs_per_uid"):
        state.open_run(hello(ring_id=3), identity(pid=3))
    state.open_run(hello(ring_id=3), identity(uid=1001, pid=3))
    state.process_gone(runs[0])
    state.open_run(hello(ring_id=3), identity(pid=3))


def test_a_log_directory_that_cannot_be_used_refuses_the_run_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RefusedError, match="file"):
        State(str(tmp_path / "file")).open_run(hello(), identity())


def test_ended_runs_are_forgotten_in_memory_and_kept_on_disk(make_state: MakeState, tmp_path: Path) -> None:
    state = make_state()
    for n in range(1, MAX_ENDED_RUNS + 4):
        run = state.open_run(hello(ring_id=n), identity(pid=n))
        state.find(run, finding())
        state.process_gone(run)
    state.tick()
    assert len(state.runs) == MAX_ENDED_RUNS
    assert "digits" not in state.runs
    assert len(state.findings.active) == MAX_ENDED_RUNS
    assert len(list((tmp_path / "runs").glob("*/run.json"))) == MAX_ENDED_RUNS + 3


def test_silence_closes_a_step_at_a_tick(make_state: MakeState, clock: Clock) -> None:
    state = make_state()
    run = state.open_run(hello(), identity())
    clock.ns = 6 * SECOND_NS
    state.ring(run, [(1, 6 * SECOND_NS, 1, step_payload(1, {"loss": 1.0}, complete=False))])
    clock.sleep(0.5)
    state.tick()
    assert run.counters.steps == 0
    clock.sleep(0.6)
    state.tick()
    assert run.counters.steps == 1


def test_run_json_is_written_every_two_seconds_and_only_when_something_changed(make_state: MakeState, clock: Clock) -> None:
    state = make_state()
    run = state.open_run(hello(), identity())

    def stamp() -> float:
        return summary_of(run).updated_wall_seconds

    state.ring(run, steps(1, 1))
    opened = stamp()
    clock.sleep(SUMMARY_SECONDS - 0.5)
    state.tick()
    assert stamp() == opened
    clock.sleep(0.6)
    state.tick()
    assert stamp() > opened
    quiet = stamp()
    clock.sleep(5)
    state.tick()
    assert stamp() == quiet


def test_run_json_survives_a_diverged_run(make_state: MakeState) -> None:
    state = make_state()
    run = state.open_run(hello(), identity())
    state.ring(run, steps(1, 1, grad_norm=math.inf, grad_absmax=math.nan, grad_nonfinite_count=math.inf))
    state.control(run, 1, Meta({"ratio": math.nan}))
    state.save(run)
    read = summary_of(run)
    assert (read.values["grad_norm"], read.values["grad_absmax"]) == ("inf", "nan")
    assert summary.number("inf") == math.inf
    assert math.isnan(summary.number("nan"))
    assert math.isnan(summary.number("seven"))


def test_the_latest_layers_of_each_family_are_kept(make_state: MakeState) -> None:
    state = make_state()
    run = state.open_run(hello(), identity())
    batch = [
        (2, tensors_payload(1, [1.0, 2.0])),
        (2, tensors_payload(1, [7.0], family=1)),
        (1, step_payload(1, {})),
        (2, tensors_payload(2, [3.0], first=0)),
        (2, tensors_payload(2, [4.0], first=1)),
        (1, step_payload(2, {})),
    ]
    state.ring(run, slots(batch))
    assert [(rows.first, rows.step) for rows in run.tables("gradient")] == [(0, 2), (1, 2)]
    assert [rows.step for rows in run.tables("weight")] == [1]
    assert list(run.tables("update")) == []


def test_learning_rates_stay_in_the_order_of_their_names_when_optimizers_take_turns(make_state: MakeState) -> None:
    state = make_state()
    run = state.open_run(hello(), identity())
    state.control(run, 1, Names("group", 1, 0, ("G/slow", "G/fast", "D/group0")))
    both = [
        (1, step_payload(1, {}, 0, complete=False, groups=(0.1, 0.0, 0.2, 0.0))),
        (1, step_payload(1, {}, 1, groups=(0.3, 0.0))),
    ]
    state.ring(run, slots([*both, (1, step_payload(2, {}, 1, groups=(0.4, 0.0)))]))
    rates = {run.group_name(index): rate for index, (rate, _) in enumerate(run.learning_rates)}
    assert rates == {"G/slow": 0.1, "G/fast": 0.2, "D/group0": 0.4}


def test_tags_and_facts_are_bounded(make_state: MakeState) -> None:
    state = make_state()
    run = state.open_run(hello(), identity())
    state.control(run, 1, tuple(Scalar(f"tag{n}", 1, float(n), 0) for n in range(1000)))
    state.control(run, 2, Meta({f"fact{n}": n for n in range(1000)}))
    assert len(run.scalars) == 501
    assert run.scalars[wire.OTHER_NAME].value == 999.0
    assert run.tags_left_out == 500
    assert len(run.facts) == 200


def test_findings_go_to_the_journal_when_they_open_and_close(make_state: MakeState) -> None:
    state = make_state()
    run = state.open_run(hello(), identity())
    heard = []
    state.on_finding.append(lambda _run, found: heard.append(found.state))
    found = finding()
    for status in ("active", "active", "closed"):
        found.state = status
        state.find(run, found)
    state.tick()
    reader = JournalReader(Path(run.path) / "journal")
    decoded = [entry.frame.decode() for entry in reader.read()]
    reader.close()
    assert [kept.state for kept in decoded if isinstance(kept, Finding)] == ["active", "closed"] == heard
    assert run.counters.findings == {"loss_spike": 1}
    assert (found.run, found.rank, found.directory) == ("digits", 0, "digits")


def test_wall_time_comes_from_the_processs_own_pair(make_state: MakeState) -> None:
    run = make_state().open_run(hello(monotonic_ns=5 * SECOND_NS, wall_ns=10**18), identity())
    assert run.wall_seconds(7 * SECOND_NS) == 1e9 + 2.0
