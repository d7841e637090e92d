"""What a step of the hooks is made of, counted: a regression shows in these numbers on any machine, however busy.

Beside a model that has just filled the caches, each call of ours costs some 0.5 us and each new kind of operator 5 to 10.
"""

import collections
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.hooks.recording import recording


class Operators(TorchDispatchMode):
    """Counts the operators that run while it is on."""

    def __init__(self):
        super().__init__()
        self.found = collections.Counter()

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        self.found[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def step(model, optimizer, batch, *, clip=True):
    with torch.autocast("cpu", enabled=False):
        loss = model(batch).square().mean()
    optimizer.zero_grad()
    loss.backward()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def network():
    """Eight tensors, one of them large, as in the demo."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 16), nn.Linear(16, 4))
    return model, torch.optim.SGD(model.parameters(), lr=1e-3), torch.randn(4, 64)


def calls_of_ours(run):
    """How often a Python function of the hooks was called in `run()`."""
    found = 0

    def traced(frame, event, _argument):
        nonlocal found
        found += event == "call" and "/gpuwatch_hooks/" in frame.f_code.co_filename

    sys.setprofile(traced)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


def operators(run):
    with Operators() as mode:
        run()
    return mode.found


@pytest.fixture
def lean():
    """A session in which no family of statistics has its turn."""
    with recording(every=1_000_000) as session:
        yield session


def test_calls_in_a_usual_step(lean):
    model, optimizer, batch = network()
    for _ in range(3):
        step(model, optimizer, batch)
    found = [calls_of_ours(lambda: step(model, optimizer, batch)) for _ in range(4)]
    assert min(found) > 50, "the hooks were not there"
    assert max(found) <= 210, found
    assert len(lean.parts()) == 7


def test_many_tensors_take_no_more_calls_than_few(lean):
    parameters = [nn.Parameter(torch.randn(4)) for _ in range(150)]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)

    def one():
        optimizer.zero_grad()
        torch.cat(parameters).square().sum().backward()
        optimizer.step()

    for _ in range(6):  # nobody has named these tensors: the loop's variables are searched a few times
        one()
    assert calls_of_ours(one) <= 150
    found = operators(one)
    assert found["cat"] == 2  # the job's own, and one for all norms
    assert found["segment_reduce"] == 1
    assert found["linalg_vector_norm"] == 0


def test_operators_in_a_usual_step():
    """One norm and one number a tensor, two norms for a large one, the loss and the clip's norm: two kinds of operators."""
    model, optimizer, batch = network()
    step(model, optimizer, batch)
    plain = operators(lambda: step(model, optimizer, batch))
    with recording(every=1_000_000):
        step(model, optimizer, batch)
        step(model, optimizer, batch)
        hooked = operators(lambda: step(model, optimizer, batch))
    ours = hooked - plain
    assert set(ours) == {"linalg_vector_norm", "_local_scalar_dense"}, ours
    large = sum(parameter.numel() > 4096 for parameter in model.parameters())
    assert large == 2
    assert ours["linalg_vector_norm"] == 8 + large
    assert ours["_local_scalar_dense"] == 8 + 2


def test_blocks_without_gradients_are_watched_only_for_a_batchnorm(lean):
    model, optimizer, batch = network()
    before = torch.no_grad.__enter__
    step(model, optimizer, batch)
    assert torch.no_grad.__enter__ is before
    normed = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8))
    step(normed, torch.optim.SGD(normed.parameters(), lr=0.1), batch)
    assert torch.no_grad.__enter__ is not before
    assert lean.parts()
