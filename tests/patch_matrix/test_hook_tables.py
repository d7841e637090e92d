"""torch's own hook tables, with somebody else's hooks in them: nothing of ours piles up, and no loop over them is broken."""

import pytest
import torch
from gpuwatch_hooks import attached, patching
from gpuwatch_hooks.patching import Ledger
from torch.optim import optimizer


@pytest.fixture
def theirs():
    """`theirs(function)` registers a pre-hook of another tool."""
    handles = []
    yield lambda function: handles.append(optimizer.register_optimizer_step_pre_hook(function))
    for handle in handles:
        handle.remove()
    assert not optimizer._global_optimizer_pre_hooks


def step():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    torch.optim.SGD([parameter], lr=0.1).step()


def hooked():
    ledger = Ledger()
    ledger.hook(optimizer.register_optimizer_step_pre_hook, lambda *_: None)
    return ledger


def removes(ledgers):
    def hook(*_):
        for ledger in ledgers:
            ledger.remove()

    return hook


def test_cycles_beside_a_foreign_hook_leave_one_empty_entry_and_a_sweep_none(theirs):
    theirs(lambda *_: None)
    for _ in range(50):
        ledger = hooked()
        ledger.remove()
        step()
        assert len(optimizer._global_optimizer_pre_hooks) == 2
    ledger.sweep()
    assert len(optimizer._global_optimizer_pre_hooks) == 1


def test_what_stays_holds_nothing_of_ours(theirs):
    theirs(lambda *_: None)
    ledger = hooked()
    ledger.remove()
    left = list(optimizer._global_optimizer_pre_hooks.values())[-1]
    assert left.__globals__ == {"__builtins__": {}}
    assert left.__closure__ is None
    ledger.sweep()


def test_removal_in_the_middle_of_the_loop_breaks_no_step(theirs):
    ledgers = []
    theirs(removes(ledgers))
    ledgers.append(hooked())
    step()
    ledgers[0].sweep()


def test_twin_taking_the_entry_out_breaks_it(theirs, monkeypatch):
    ledgers = []
    theirs(removes(ledgers))
    ledgers.append(hooked())
    theirs(lambda *_: None)
    monkeypatch.setattr(patching, "_withdraw", lambda handle: handle.remove())
    with pytest.raises(RuntimeError, match="mutated during iteration"):
        step()


def test_whether_a_thread_is_in_the_loop(theirs):
    seen = []
    theirs(lambda *_: seen.append(attached._in_hook_loop()))
    step()
    assert seen == [True]
    assert not attached._in_hook_loop()


def test_a_step_under_way_is_not_the_loop(theirs):
    """LBFGS calls its closure, a whole training step, inside `step`: there hooks may come and go."""
    theirs(lambda *_: None)
    seen = []
    parameter = torch.nn.Parameter(torch.ones(2))

    def closure():
        seen.append(attached._in_hook_loop())
        parameter.grad = torch.ones(2)
        return parameter.sum()

    torch.optim.LBFGS([parameter], max_iter=1).step(closure)
    assert not any(seen)
    assert seen
