"""Traps 27 to 29: compiled models and steps are the same graphs with the hooks as without."""

import pytest
import torch
from torch import nn

from tests.hooks.recording import recording
from tests.hooks.traps.truth import CLOSE, norm


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


class Graphs:
    """A compiler backend that counts the graphs it is given and runs them as they are."""

    def __init__(self):
        self.sizes = []

    def __call__(self, graph, _inputs):
        self.sizes.append(len(graph.graph.nodes))
        return graph.forward


def test_a_compiled_model(model, batches):
    graphs = Graphs()
    compiled = torch.compile(model, backend=graphs)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    expected = []
    with recording() as session:
        for inputs, targets in batches[:4]:
            optimizer.zero_grad()
            with torch.autocast("cpu", enabled=False):
                loss = nn.functional.mse_loss(compiled(inputs), targets)
            loss.backward()
            expected.append((loss.item(), norm(model.parameters())))
            optimizer.step()
    assert len(graphs.sizes) == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    parts = session.parts()
    assert [part.values["loss"] for part in parts] == [loss for loss, _ in expected]
    assert [part.values["grad_norm"] for part in parts] == pytest.approx([value for _, value in expected], rel=CLOSE)
    assert session.tables["tensor"][1] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def loop_step(model, optimizer, inputs, targets):
    """A whole training step in one compiled function, autocast and clipping included: breaks where torch itself breaks."""
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nn.functional.mse_loss(model(inputs), targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    return loss


def graphs_of_a_compiled_loop(model, batches):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    graphs = Graphs()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    compiled = torch.compile(loop_step, backend=graphs)
    for inputs, targets in batches[:4]:
        compiled(model, optimizer, inputs, targets)
    return graphs.sizes, sum(torch._dynamo.utils.counters["graph_break"].values())


def test_a_compiled_loop_has_no_more_graphs_with_the_hooks(model, batches):
    """Trap 28: the compiled step still calls the hooks, and they compile to nothing."""
    plain, plain_breaks = graphs_of_a_compiled_loop(model, batches)
    with recording() as session:
        hooked, hooked_breaks = graphs_of_a_compiled_loop(model, batches)
    assert hooked == plain
    assert hooked_breaks <= plain_breaks  # torch breaks the graph at its own step anyway
    assert [part.step for part in session.parts()] == [1, 2, 3, 4]


def test_hooks_that_come_later_recompile_nothing(model, batches):
    """Trap 29: attach puts the hooks into a job whose model is compiled already."""
    graphs = Graphs()
    compiled = torch.compile(model, backend=graphs)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def steps(some):
        for inputs, targets in some:
            optimizer.zero_grad()
            nn.functional.mse_loss(compiled(inputs), targets).backward()
            optimizer.step()

    steps(batches[:2])
    with recording() as session:
        steps(batches[2:4])
    steps(batches[4:6])
    assert len(graphs.sizes) == 1
    assert len(session.parts()) == 2


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_real_backends(model, batches, backend):
    """The loss is the same bits with the hooks as without, compiled for good."""

    def run():
        torch._dynamo.reset()
        torch.manual_seed(5)
        fresh = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
        compiled = torch.compile(fresh, backend=backend)
        optimizer = torch.optim.AdamW(fresh.parameters(), lr=1e-3)
        losses = []
        for inputs, targets in batches[:5]:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(compiled(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    plain = run()
    with recording() as session:
        assert run() == plain
    assert [part.values["loss"] for part in session.parts()] == plain
    assert not torch._dynamo.utils.counters["graph_break"]
