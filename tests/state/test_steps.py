"""Merging the parts of a step, against sums written out by hand."""

from __future__ import annotations

import math

import pytest
from gpuwatch_hooks import wire
from hypothesis import given
from hypothesis import strategies as st

from gpuwatch.state.records import End, Event, StepPart, TensorRows
from gpuwatch.state.steps import SILENCE_NS, StepMerger, merge

SECOND = 10**9


def part(step: int, optimizer: int = 0, complete: bool = False, at: float = 0.0, **values: float) -> StepPart:
    return StepPart(step, optimizer, complete, values, ((0.1 * (optimizer + 1), 0.0),), int(at * SECOND))


def table(step: int, optimizer: int = 0) -> TensorRows:
    return TensorRows(step, optimizer, "gradient", 1, 0, 0, 255, b"", 0)


def test_norms_add_in_squares_peaks_take_the_largest_and_counts_add() -> None:
    a = part(3, 0, loss=2.0, grad_norm=3.0, weight_norm=6.0, grad_absmax=1.0, grad_nonfinite_count=2.0, forward_seconds=0.5)
    b = part(3, 1, loss=5.0, grad_norm=4.0, weight_norm=8.0, grad_absmax=7.0, grad_nonfinite_count=1.0, forward_seconds=0.25)
    step = merge([b, a])
    assert step.values["grad_norm"] == 5.0
    assert step.values["weight_norm"] == 10.0
    assert step.values["grad_absmax"] == 7.0
    assert step.values["grad_nonfinite_count"] == 3.0
    assert step.values["forward_seconds"] == 0.75
    assert step.values["loss"] == 2.0
    assert step.losses == {0: 2.0, 1: 5.0}
    assert step.groups == {0: ((0.1, 0.0),), 1: ((0.2, 0.0),)}


def test_the_loss_is_the_lowest_optimizers_that_has_one() -> None:
    assert merge([part(1, 0, grad_norm=1.0), part(1, 2, loss=3.0), part(1, 1, loss=4.0)]).values["loss"] == 4.0


def test_the_update_ratio_of_two_optimizers_is_that_of_all_their_weights() -> None:
    step = merge([part(1, 0, update_ratio=0.1, weight_norm=3.0), part(1, 1, update_ratio=0.5, weight_norm=4.0)])
    assert step.values["update_ratio"] == pytest.approx(math.sqrt(0.3**2 + 2.0**2) / 5.0)


def test_nan_is_not_lost_in_a_largest_or_a_norm() -> None:
    for order in ([0, 1], [1, 0]):
        step = merge(
            [part(1, i, grad_absmax=math.nan if i == order[0] else 1.0, grad_norm=math.inf if i else math.nan) for i in order]
        )
        assert math.isnan(step.values["grad_absmax"])
        assert math.isnan(step.values["grad_norm"])


def test_no_duration_is_negative() -> None:
    assert merge([part(1, data_seconds=-1.0)]).values["data_seconds"] == 0.0
    assert merge([part(1, 0, step_seconds=-1.0), part(1, 1, step_seconds=2.0)]).values["step_seconds"] == 2.0


def test_every_field_of_the_wire_has_a_finite_merge() -> None:
    values = dict.fromkeys(wire.STEP_FIELDS, 1.0)
    merged = merge([part(1, 0, **values), part(1, 1, **values)]).values
    assert set(merged) == set(values)
    assert all(math.isfinite(value) for value in merged.values())


def test_a_complete_part_ends_its_step() -> None:
    merger = StepMerger()
    assert merger.feed(part(1, 0)) == []
    (step,) = merger.feed(part(1, 1, complete=True))
    assert (step.step, len(step.groups)) == (1, 2)
    assert merger.is_idle


def test_a_part_of_a_later_step_ends_the_one_before() -> None:
    merger = StepMerger()
    merger.feed(part(1))
    assert [step.step for step in merger.feed(part(2, complete=True))] == [1, 2]


def test_a_second_part_of_the_same_optimizer_is_not_merged() -> None:
    merger = StepMerger()
    merger.feed(part(1, loss=1.0))
    merger.feed(part(1, loss=2.0))
    (step,) = merger.close()
    assert step.values["loss"] == 1.0
    assert merger.late_parts == 1


def test_silence_ends_a_step_and_a_late_part_teaches_patience() -> None:
    merger = StepMerger()
    merger.feed(part(1, 0, at=10.0))
    assert merger.flush(int(10.9 * SECOND)) == []
    assert len(merger.flush(11 * SECOND)) == 1
    assert merger.feed(part(1, 1, at=13.0)) == []
    assert merger.late_parts == 1
    merger.feed(part(2, 0, at=20.0))
    assert merger.flush(22 * SECOND) == [], "this run's optimizers are three seconds apart"
    assert [step.step for step in merger.feed(part(2, 1, complete=True, at=23.0))] == [2]
    assert SILENCE_NS < merger.patience_ns == 6 * SECOND


def test_the_end_closes_what_is_open() -> None:
    merger = StepMerger()
    merger.feed(part(1))
    merger.feed(table(2))
    assert [step.step for step in merger.feed(End(1, "exit", 0))] == [1]
    assert merger.is_idle


def test_tables_are_committed_by_their_own_part_only() -> None:
    merger = StepMerger()
    merger.feed(table(1, optimizer=0))
    merger.feed(table(9, optimizer=0))  # the part that would have committed it was overwritten in the ring
    merger.feed(part(1, 0))
    merger.feed(table(1, optimizer=1))
    (step,) = merger.feed(part(1, 1, complete=True))
    assert [(rows.step, rows.optimizer) for rows in step.tensors] == [(1, 0), (1, 1)]


def test_a_step_has_a_bounded_number_of_parts() -> None:
    merger = StepMerger()
    for optimizer in range(1000):
        merger.feed(part(1, optimizer))
    (step,) = merger.close()
    assert (len(step.groups), merger.late_parts) == (256, 744)


def test_uncommitted_tables_are_bounded() -> None:
    merger = StepMerger()
    for _ in range(5000):
        merger.feed(table(1))
    (step,) = merger.feed(part(1, complete=True))
    assert len(step.tensors) == 2048


parts = st.builds(
    part,
    step=st.integers(0, 6),
    optimizer=st.integers(0, 3),
    complete=st.booleans(),
    at=st.floats(0, 5),
    loss=st.floats(),
    step_seconds=st.floats(),
)


@given(
    st.lists(st.one_of(parts, st.builds(table, st.integers(0, 6), st.integers(0, 3)), st.just(Event(1, "notice", 0.0, "", 0))))
)
def test_whatever_comes_steps_come_out_once_and_in_order(records: list) -> None:
    merger = StepMerger()
    out = [step for record in records for step in merger.feed(record)] + merger.close()
    numbers = [step.step for step in out]
    assert numbers == sorted(set(numbers))
    fed = [record for record in records if isinstance(record, StepPart)]
    assert sum(len(step.groups) for step in out) + merger.late_parts == len(fed)
    assert all(step.values.get("step_seconds", 0.0) >= 0.0 or math.isnan(step.values["step_seconds"]) for step in out)
