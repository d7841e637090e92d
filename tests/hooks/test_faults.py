"""H1: a fault in any call of ours, the n-th, whatever it is, never reaches training, and training's bits stay the same.

The injector raises at the entry of the n-th Python function of this package that runs inside the boundary. What runs outside
it may only pass a call on, so that there is nothing in it that could fail: this is read from its code.
"""

import contextlib
import inspect
import sys

import pytest
import torch
from gpuwatch_hooks import guard as guard_module
from gpuwatch_hooks import notices, session

STEPS = 3

#: Code that runs on the training thread outside the boundary because it is the boundary, or has one of its own.
BOUNDARY = {"guard.Guard.wrap.hook", "guard.Guard.metered.hook", "guard.Guard.run", "post_import.Waiter.find_spec"}


class InjectedError(Exception):
    pass


def train(disturb=contextlib.nullcontext):
    """Losses of a few steps with everything in them that the probes look at, as exact floats."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    data = torch.utils.data.TensorDataset(torch.randn(STEPS * 4, 6), torch.randint(0, 2, (STEPS * 4,)))
    rest = torch.nn.Linear(2, 1)
    lbfgs = torch.optim.LBFGS(rest.parameters(), max_iter=2)

    def closure():
        lbfgs.zero_grad()
        loss = rest(torch.ones(3, 2)).square().mean()
        loss.backward()
        return loss

    losses = []
    with disturb():
        for inputs, targets in torch.utils.data.DataLoader(data, batch_size=4):
            adam.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(model(inputs), targets)
            scaler.scale(loss).backward()
            scaler.unscale_(adam)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(adam)
            scaler.update()
            losses += [loss.item(), lbfgs.step(closure).item()]
    return losses, [p.detach().clone() for p in [*model.parameters(), *rest.parameters()]]


def same(one, other):
    return one[0] == other[0] and all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


@pytest.fixture(scope="module")
def expected():
    return train()


def _name(frame):
    module = frame.f_globals.get("__name__", "")
    code = frame.f_code
    if not module.startswith("gpuwatch_hooks.") or code.co_name.startswith("<") or code.co_flags & inspect.CO_GENERATOR:
        return None  # a generator is entered again to be closed: there Python only prints what is raised
    qualified = frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name
    return module[len("gpuwatch_hooks.") :] + "." + qualified.replace(".<locals>", "")


def _is_inside(frame):
    """Whether a frame of the boundary is below this one."""
    frame = frame.f_back
    while frame is not None:
        if frame.f_globals is vars(guard_module) and frame.f_code.co_name in ("hook", "run"):
            return True
        frame = frame.f_back
    return False


class Injector:
    """Counts the calls of our functions inside the boundary, raises `error` at number `at`, notes those outside."""

    def __init__(self, at=None, error=InjectedError):
        self.at, self.error = at, error
        self.count, self.outside, self.raised_in = 0, {}, None

    def __call__(self, frame, event, _):
        if event != "call":
            return
        name = _name(frame)
        if name is None:
            return
        if not _is_inside(frame):
            self.outside[name] = frame.f_code
            return
        self.count += 1
        if self.count == self.at:
            self.raised_in = name
            raise self.error(name)

    @contextlib.contextmanager
    def __call_during__(self):
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)


def run(injector, socket_path):
    """One hooked training under the injector, and the session it was recorded by."""
    one = session.Session()
    one.install()
    try:
        return train(injector.__call_during__), one
    finally:
        one.detach()


@pytest.fixture
def _quiet(monkeypatch, socket_path):
    monkeypatch.setenv("GPUWATCH_HOOKS_RING_SLOTS", "8")
    monkeypatch.setattr(notices, "say_once", lambda _: None)


@pytest.mark.slow
@pytest.mark.usefixtures("_quiet")
def test_no_fault_of_ours_reaches_training_whichever_call_it_is(expected, socket_path):
    counting = Injector()
    result, _ = run(counting, socket_path)
    assert same(result, expected)
    assert counting.count > 500
    # Every call of the beginning, where most kinds of call come for the first time; then every 13th. The governor looks at
    # the clock, so that the number of calls is not the same each time.
    numbers = [*range(1, 150), *range(150, counting.count * 9 // 10, 13)]
    seen = set()
    for number in numbers:
        injector = Injector(at=number)
        result, one = run(injector, socket_path)
        seen.add(injector.raised_in)
        assert same(result, expected), (number, injector.raised_in)
        assert sum(one.guard.faults().values()) <= 3, (number, injector.raised_in)
    assert len(seen - {None}) > 60


@pytest.mark.usefixtures("_quiet")
def test_only_what_passes_a_call_on_runs_outside_the_boundary(socket_path):
    """A wrapper's code names no global and no attribute: it calls its variables: the original, and the boundary."""
    counting = Injector()
    run(counting, socket_path)
    assert set(counting.outside) >= {"guard.Guard.wrap.hook", "patching._switchable.wrapper"}
    looks_up = {name: code.co_names for name, code in counting.outside.items() if code.co_names and name not in BOUNDARY}
    assert looks_up == {}


@pytest.mark.usefixtures("_quiet")
def test_twin_without_the_boundary_a_fault_ends_training(monkeypatch, socket_path):
    monkeypatch.setattr(guard_module, "Exception", (), raising=False)  # `except ()` catches nothing
    with pytest.raises(InjectedError):
        run(Injector(at=40), socket_path)


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("number", [1, 50, 400])
def test_ctrl_c_inside_a_hook_is_the_users(socket_path, number):
    with pytest.raises(KeyboardInterrupt):
        run(Injector(at=number, error=KeyboardInterrupt), socket_path)


@pytest.mark.usefixtures("_quiet")
def test_a_probe_that_always_fails_is_switched_off_and_the_others_go_on(expected, socket_path, monkeypatch):
    from gpuwatch_hooks.probes.gradients import GradientsProbe

    def fails(*_):
        raise InjectedError

    monkeypatch.setattr(GradientsProbe, "before", fails)
    result, one = run(Injector(), socket_path)
    assert same(result, expected)
    assert one.guard.faults() == {"gradients": 3}
    assert one.guard.is_off("gradients")
