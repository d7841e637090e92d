"""torch.compile beside the hooks: the same graphs, no break and no recompilation more, the same bits."""

import subprocess
import sys
import types

import pytest
import torch
from gpuwatch_hooks import patching, untraced
from gpuwatch_hooks.guard import Guard
from gpuwatch_hooks.patching import Ledger
from torch.optim import optimizer as optimizer_module

STEPS = 5

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:Dynamo does not know:UserWarning")


def _compiled_step():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.randn(8, 4)

    def step():
        sgd.zero_grad()
        loss = model(batch).pow(2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        sgd.step()
        return loss

    return torch.compile(step, backend="eager")


def _compiled_optimizer():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.randn(8, 4)
    update = torch.compile(sgd.step, backend="eager")

    def step():
        sgd.zero_grad()
        loss = model(batch).pow(2).mean()
        loss.backward()
        update()
        return loss

    return step


def _compiled_clip():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4))

    def clipped(gradient):
        weight.grad = gradient * 2
        return torch.nn.utils.clip_grad_norm_([weight], 0.5)

    compiled = torch.compile(clipped, backend="eager", fullgraph=True)
    return lambda: compiled(torch.ones(4))


PROGRAMS = {"whole step": _compiled_step, "optimizer": _compiled_optimizer, "clip, full graph": _compiled_clip}


def _compile_and_run(make, steps=STEPS):
    """(results, counters of the compiler) of a few steps in a fresh compiler."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    step = make()
    results = [step().item() for _ in range(steps)]
    return results, {
        "graphs": counters["stats"]["unique_graphs"],
        "captured calls": counters["stats"]["calls_captured"],
        "breaks": sum(counters["graph_break"].values()),
        "frames": counters["frames"]["total"],  # with those that are compiled again
    }


@pytest.fixture
def calls():
    return []


@pytest.fixture
def hooked(calls):
    """The kinds of hooks and wrappers that the recorder uses, with bodies that would break a graph if they were traced."""
    ledger = Ledger()
    guard = Guard(lambda *_: None, lambda *_: None)

    def body(name):
        def note(*_args, **_kwargs):
            calls.append(name)
            print(end="")  # not traceable
            if torch.compiler.is_compiling():
                calls.append("traced!")

        return guard.wrap(name, note)

    def around(name):
        before, after = body(name), body(name)

        def make(original):
            def active(*args, **kwargs):
                before()
                try:
                    return original(*args, **kwargs)
                finally:
                    after()

            return active

        return make

    ledger.hook(optimizer_module.register_optimizer_step_pre_hook, body("pre"))
    ledger.hook(optimizer_module.register_optimizer_step_post_hook, body("post"))
    ledger.wrap(torch.autograd, "backward", around("backward"))
    ledger.wrap(torch.nn.utils.clip_grad, "_get_total_norm", around("norm"))
    ledger.wrap(torch.amp.GradScaler, "step", around("scaler"))
    yield
    ledger.remove()


@pytest.fixture(params=PROGRAMS)
def program(request):
    return PROGRAMS[request.param]


@pytest.fixture
def expected(program):
    return _compile_and_run(program)  # before `hooked` is set up


def test_the_compiler_does_not_notice_the_hooks(program, expected, hooked, calls):
    results, counts = _compile_and_run(program)
    assert results == expected[0]
    for name in ("graphs", "captured calls"):
        assert counts[name] == expected[1][name], name
    for name in ("breaks", "frames"):
        assert counts[name] <= expected[1][name], name
    assert "traced!" not in calls
    if program is not _compiled_clip:
        assert calls.count("pre") == calls.count("post") == STEPS
    if program is _compiled_optimizer:
        assert calls.count("backward") == 2 * STEPS


def test_the_compiler_does_not_notice_the_whole_recorder(program, expected, make_session):
    session = make_session()
    session.install()
    try:
        results, counts = _compile_and_run(program)
    finally:
        session.detach()
    assert session.guard.faults() == {}
    assert results == expected[0]
    for name in ("graphs", "captured calls"):
        assert counts[name] == expected[1][name], name
    for name in ("breaks", "frames"):
        assert counts[name] <= expected[1][name], name


def test_attaching_to_a_compiled_step_compiles_it_again_at_most_once(make_session):
    """A step compiled whole is guarded on torch's own hook table; after that, cycles of attach and detach cost nothing."""
    from torch._dynamo.utils import counters

    expected = _compile_and_run(_compiled_step, 18)[0]
    torch._dynamo.reset()
    counters.clear()
    step, results, frames = _compiled_step(), [], []
    for number in range(18):
        if number % 6 == 2:
            session = make_session()
            session.install()
        if number % 6 == 5:
            session.detach()
        results.append(step().item())
        frames.append(counters["frames"]["total"])
    assert results == expected
    assert frames[5] - frames[1] <= 3
    assert frames[17] == frames[5]


@pytest.mark.parametrize("program", ["whole step", "clip, full graph"], indirect=True)
def test_twin_without_the_marks_the_compiler_stumbles(program, expected, monkeypatch, calls, request):
    monkeypatch.setattr(untraced, "hide", lambda function: function)
    monkeypatch.setattr(untraced, "stand_in", lambda function, _: function)
    monkeypatch.setattr(untraced, "skip_frame", lambda _: None)
    for function in (Guard.wrap, patching._switchable):
        for code in function.__code__.co_consts:
            if isinstance(code, types.CodeType):
                torch._C._dynamo.eval_frame.reset_code(code)  # another test has marked it
    request.getfixturevalue("hooked")
    try:
        _, counts = _compile_and_run(program)
    except torch._dynamo.exc.Unsupported:
        return  # a full graph is impossible then
    assert counts["breaks"] > expected[1]["breaks"] or counts["captured calls"] < expected[1]["captured calls"]


def test_the_compiler_is_not_imported():
    code = (
        "import sys, torch\n"
        "from gpuwatch_hooks.guard import Guard\n"
        "from gpuwatch_hooks.patching import Ledger\n"
        "guard = Guard(print, print)\n"
        "ledger = Ledger()\n"
        "from torch.optim import optimizer\n"
        "ledger.hook(optimizer.register_optimizer_step_pre_hook, guard.wrap('p', print))\n"
        "ledger.wrap(torch.autograd, 'backward', lambda f: guard.wrap('b', f))\n"
        "x = torch.ones(2, requires_grad=True)\n"
        "x.sum().backward()\n"
        "ledger.remove()\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_switch_is_put_back_when_a_hook_fails():
    evaluator = torch._C._dynamo.eval_frame
    guard = Guard(lambda *_: None, lambda *_: None)
    inside = []

    def body():
        inside.append(evaluator.get_eval_frame_callback())
        raise ValueError

    hook = guard.wrap("p", body)
    previous = evaluator.set_eval_frame(False)
    try:
        hook()
        assert evaluator.get_eval_frame_callback() is False
    finally:
        evaluator.set_eval_frame(previous)
    assert inside == [None]
