"""The first steps of a run come back from its journal, also where it holds much else, or is not whole."""

from __future__ import annotations

from collections.abc import Callable

from gpuwatch_hooks import wire

from gpuwatch.state.beginning import FIRST_STEPS
from gpuwatch.state.store import State
from tests.state.recorded import hello, identity, slots, step_payload, tensors_payload

MakeState = Callable[..., State]


def test_a_daemon_that_comes_back_has_the_first_steps(make_state: MakeState) -> None:
    state = make_state()
    run = state.open_run(hello(), identity())
    assert run.first_steps == []
    payloads = []
    for step in range(1, 61):
        payloads.append((wire.KIND_TENSORS, tensors_payload(step, [1.0, 2.0])))
        payloads.append((wire.KIND_STEP, step_payload(step, {"loss": 1.0 / step, "grad_norm": 2.0}, 0, complete=False)))
        payloads.append((wire.KIND_STEP, step_payload(step, {"loss": 9.0}, 1)))
    state.ring(run, slots(payloads))
    state.close()
    again = make_state().open_run(hello(), identity())
    assert [step.step for step in again.first_steps] == list(range(1, FIRST_STEPS + 1))
    assert [step.values["loss"] for step in again.first_steps] == [1.0 / step for step in range(1, FIRST_STEPS + 1)]
    assert all(set(step.losses) == {0, 1} and not step.tensors for step in again.first_steps)


def test_a_run_of_three_steps_has_three(make_state: MakeState) -> None:
    state = make_state()
    state.ring(
        state.open_run(hello(), identity()), slots([(wire.KIND_STEP, step_payload(n, {"loss": 1.0})) for n in (1, 2, 3)])
    )
    state.close()
    assert [step.step for step in make_state().open_run(hello(), identity()).first_steps] == [1, 2, 3]


def test_a_journal_without_its_beginning_gives_none(make_state: MakeState, tmp_path) -> None:  # type: ignore[no-untyped-def]
    state = make_state()
    state.ring(state.open_run(hello(), identity()), slots([(wire.KIND_STEP, step_payload(1, {"loss": 1.0}))]))
    state.close()
    (first,) = tmp_path.rglob("000001.journal")
    first.rename(first.with_name("000002.journal"))
    assert make_state().open_run(hello(), identity()).first_steps == []
