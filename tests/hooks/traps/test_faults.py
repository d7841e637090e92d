"""Trap 42: whatever goes wrong inside the hooks, training does not notice."""

import inspect
import sys
from pathlib import Path

import gpuwatch_hooks
import pytest
import torch
from torch import nn

from tests.hooks.recording import recording

OURS = str(Path(gpuwatch_hooks.__file__).parent)
#: Functions of ours that stand in the chain of calls of the user or of the garbage collector: they only call on or assign.
WRAPPERS = {"_let_go", "backward", "step", "scale", "update", "fetch", "entering", "leaving", "wrapper", "counted", "hook"}
BOUNDARY = ("guard.py", "patching.py", "untraced.py", "notices.py")


def train(steps=2):
    """Every patched function is called: autocast, scaler, clipping, DataLoader, two optimizers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
    optimizer, other = torch.optim.SGD(model[0].parameters(), lr=1e-2), torch.optim.Adam(model[2].parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    loader = iter(torch.utils.data.DataLoader(torch.randn(steps * 4, 6), batch_size=4))
    losses = []
    for step in range(steps):
        inputs = next(loader)
        optimizer.zero_grad()
        other.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True))
        scaler.scale(loss).backward()
        if step == 1:
            model[0].weight.grad[0, 0] = float("nan")
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model[0].parameters(), 0.5)
        scaler.step(optimizer)
        scaler.step(other)
        scaler.update()
        losses.append(loss.item())
    return losses


def inside(code):
    """Whether a function runs inside the boundary."""
    ours = code.co_filename.startswith(OURS) and not code.co_filename.endswith(BOUNDARY)
    # A generator is also entered to be closed, where Python prints an exception instead of raising it.
    return ours and code.co_name not in WRAPPERS and not code.co_flags & inspect.CO_GENERATOR


class Fault:
    """Raises in the first call of one function of ours, a code object, or in the n-th call of any."""

    def __init__(self, code=None, number=1):
        self.code = code
        self.left = number
        self.where = None

    def __call__(self, frame, event, _argument):
        code = frame.f_code
        if event != "call" or self.where is not None or self.code not in (None, code) or not inside(code):
            return
        self.left -= 1
        if self.left == 0:
            self.where = f"{code.co_filename}:{code.co_name}"
            raise ArithmeticError(f"injected into {self.where}")


class Calls:
    """Notes which function of ours each call inside the boundary was."""

    def __init__(self):
        self.order = []

    def __call__(self, frame, event, _argument):
        code = frame.f_code
        if event == "call" and inside(code):
            self.order.append(code)


def with_profile(profile):
    sys.setprofile(profile)
    try:
        return train()
    finally:
        sys.setprofile(None)


@pytest.mark.timeout(240)
def test_a_fault_in_any_call_stays_inside():
    """One fault in every function of ours that a step reaches."""
    plain, calls = train(), Calls()
    with recording():
        with_profile(calls)
    functions = list(dict.fromkeys(calls.order))
    assert len(functions) > 60
    met = 0
    for code in functions:
        fault = Fault(code)
        with recording(strict=False) as session:
            losses = with_profile(fault)
        assert losses == plain, fault.where
        if fault.where is not None:  # one that only a garbage collection calls may not be called again
            assert session.faults, fault.where  # it was met, counted, and went no further
            met += 1
    assert met > 60


def test_without_the_guard_the_same_fault_would_stop_training(monkeypatch):
    """The twin with the protection off."""
    from gpuwatch_hooks import guard

    monkeypatch.setattr(guard.Guard, "wrap", lambda self, probe, function, default=None: function)
    monkeypatch.setattr(guard.Guard, "run", lambda self, probe, function, *args: function(*args))
    escaped = 0
    for number in (3, 30, 90):
        with recording(strict=False):
            try:
                with_profile(Fault(number=number))
            except ArithmeticError:
                escaped += 1
    assert escaped == 3


@pytest.mark.parametrize(
    "name", ["gradients", "loss", "loss_scale", "groups", "memory", "modes", "autocast", "weights", "updates"]
)
def test_a_probe_that_always_fails_takes_nothing_else_with_it(name):
    plain = train(6)
    with recording(strict=False) as session:
        probe = session.recorder.by_name[name]

        def fail(*_):
            raise ValueError(name)

        for method in ("before", "after"):
            if hasattr(probe, method):
                setattr(probe, method, fail)
        losses = train(6)
    assert losses == plain
    assert len(session.parts()) == 12
    assert session.guard.is_off(name)
    assert len(session.faults) == 3
    if name != "gradients":
        assert "grad_norm" in session.parts()[-1].values


def test_keyboard_interrupt_passes(monkeypatch):
    """The boundary catches Exception, never BaseException."""
    with recording(strict=False) as session:

        def interrupted(_part):
            raise KeyboardInterrupt

        session.recorder.by_name["groups"].after = interrupted
        with pytest.raises(KeyboardInterrupt):
            train()
