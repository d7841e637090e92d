"""The hooks' own time: all of it is counted, once, and none of the job's."""

import threading
import time

import pytest
import torch
from gpuwatch_hooks import guard as guard_module
from gpuwatch_hooks.guard import Guard
from gpuwatch_hooks.meter import Meter
from gpuwatch_hooks.probes import autocast, clearing, clipping, gradients, loss_scale, modes, phases
from torch import nn
from torch.utils.data import DataLoader

from tests.hooks.recording import recording


class Clock:
    """Stands still unless it is told to go on."""

    def __init__(self):
        self.now = 1000

    def go(self, nanoseconds):
        self.now += nanoseconds


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(guard_module, "_now", lambda: found.now)
    return found


@pytest.fixture
def guard():
    return Guard(lambda *_: None, lambda *_: None)


def test_what_a_hook_takes_is_added_once_however_deep_it_is(clock, guard):
    meter = Meter()
    inner = guard.metered(meter, "p", lambda: clock.go(4))

    def outer():
        clock.go(3)
        inner()
        clock.go(2)

    guard.metered(meter, "p", outer)()
    clock.go(100)  # the job's
    inner()
    assert (meter.cut(clock.now), meter.cut(clock.now)) == (13, 0)


def test_a_cut_in_the_middle_of_a_hook(clock, guard):
    meter, cuts = Meter(), []

    def closing():
        clock.go(3)
        cuts.append(meter.cut(clock.now))
        clock.go(2)

    guard.metered(meter, "p", closing)()
    assert (cuts, meter.cut(clock.now)) == ([3], 2)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_ended_in_an_exception_is_counted_and_over(clock, guard, error):
    meter = Meter()

    def fails():
        clock.go(5)
        raise error

    hook = guard.metered(meter, "p", fails, default="default")
    if error is ValueError:
        assert hook() == "default"
    else:
        with pytest.raises(KeyboardInterrupt):
            hook()
    clock.go(100)
    assert (meter.since, meter.cut(clock.now)) == (0, 5)


@pytest.mark.parametrize("elsewhere", [True, False])
def test_other_threads_add_nothing(clock, guard, elsewhere):
    meter, found = Meter(), []
    hook = guard.metered(meter, "p", lambda: clock.go(5) or "called", "default", elsewhere)
    thread = threading.Thread(target=lambda: found.append(hook()))
    thread.start()
    thread.join(10)
    assert found == ["called" if elsewhere else "default"]
    assert meter.cut(clock.now) == 0


ENTRANCES = [
    (autocast.AutocastProbe, "_entered"),
    (autocast.AutocastProbe, "_left"),
    (phases.PhasesProbe, "_begin"),
    (phases.PhasesProbe, "_end"),
    (modes.ModesProbe, "at_backward"),
    (clearing.ClearingProbe, "after_backward"),
    (loss_scale.LossScaleProbe, "_mark"),
    (loss_scale.LossScaleProbe, "_begin"),
    (clipping.ClippingProbe, "_measured"),
    (clipping.ClippingProbe, "_clipped"),
    (gradients.GradientsProbe, "before"),
    (gradients.GradientsProbe, "_finish"),
]


@pytest.mark.parametrize(("probe", "method"), ENTRANCES, ids=[f"{p.name}.{m}" for p, m in ENTRANCES])
def test_no_hook_is_forgotten(monkeypatch, probe, method):
    """Each is made 30 ms slower in turn, which the step's `hook_seconds` must tell."""
    original = getattr(probe, method)

    def slow(*args, **kwargs):
        time.sleep(0.03)
        return original(*args, **kwargs)

    monkeypatch.setattr(probe, method, slow)
    model = nn.Linear(4, 2)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=4.0)
    with recording(every=1_000_000) as session:
        for batch in DataLoader(torch.randn(8, 4), batch_size=2):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(batch).square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
    parts = [part.values for part in session.parts()][1:]
    assert len(parts) == 3
    for values in parts:
        assert 0.03 <= values["hook_seconds"] < values["step_seconds"]
