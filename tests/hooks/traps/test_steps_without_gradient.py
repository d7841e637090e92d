"""Real loops whose optimizers get no gradient at all, as the hooks tell of them, and what the rules make of it."""

import pytest
import torch
from gpuwatch_hooks.amp import live
from torch import nn

from gpuwatch.detectors.engine import Engine
from gpuwatch.state.records import Names
from tests.detectors.simulate import make_run
from tests.hooks.recording import recording

STEPS = 40


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def train(net, optimizers, steps=STEPS, *, backward=True):
    for number in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(number), requires_grad=True)
        loss = (net(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        if backward:
            loss.backward()
        for optimizer in optimizers:
            optimizer.step()


def backward_forgotten():
    net = model()
    train(net, [torch.optim.SGD(net.parameters(), 0.01)], backward=False)


def everything_frozen():
    net = model().requires_grad_(False)
    train(net, [torch.optim.SGD(net.parameters(), 0.01)])


def one_of_two_frozen():
    net = model()
    net[0].requires_grad_(False)
    train(net, [torch.optim.SGD(part.parameters(), 0.01) for part in (net[0], net[2])])


def one_group_frozen():
    net = model()
    net[0].requires_grad_(False)
    train(net, [torch.optim.AdamW([{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.01}])])


def closures():
    net, inputs = model(), torch.randn(8, 4)
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=3)

    def closure():
        optimizer.zero_grad()
        loss = net(inputs).square().mean()
        loss.backward()
        return loss

    for _ in range(STEPS):
        optimizer.step(closure)


def in_backward_with_a_dummy():
    """As Hugging Face's layer-wise GaLore does it: the loop's own optimizer holds nothing that is trained."""
    net = model()
    own = {parameter: torch.optim.SGD([parameter], 0.01) for parameter in net.parameters()}

    def update(parameter):
        own[parameter].step()
        own[parameter].zero_grad()

    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    train(net, [torch.optim.SGD([torch.zeros(1)], 0.01)])


def sparse():
    table = nn.Embedding(20, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters(), 0.01)
    for number in range(STEPS):
        optimizer.zero_grad()
        table(torch.tensor([number % 20, 3])).square().mean().backward()
        optimizer.step()


def adversaries_of_which_one_steps_seldom():
    maker, critic = model(), nn.Linear(1, 1)
    makers, critics = (torch.optim.Adam(one.parameters(), 1e-3) for one in (maker, critic))
    for number in range(60):
        fake = maker(torch.randn(8, 4))
        critics.zero_grad()
        (critic(fake.detach()).mean() - critic(torch.ones(8, 1)).mean()).backward()
        critics.step()
        if number % 20 == 19:
            makers.zero_grad()
            (-critic(fake).mean()).backward()
            makers.step()


class Strange(torch.Tensor):
    """A subclass whose numbers are not to be trusted."""


def unreadable():
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([weight], lr=1e-12)  # too little to change a weight: this must not be what saves it
    for _ in range(STEPS):
        weight.grad = torch.ones(4).as_subclass(Strange)
        torch.ones(1, requires_grad=True).sum().backward()
        optimizer.step()


def scaled():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    for _ in range(STEPS):
        optimizer.zero_grad()
        scaler.scale((net(torch.full((8, 4), 1e3)) * 1e3).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()


def judged(session):
    """The findings of what a session has recorded."""
    _, names, numels = session.tables["tensor"]
    run, engine, found = make_run(), Engine(), []
    version = max((record.table_version for record in session.records() if hasattr(record, "table_version")), default=1)
    run.observe(Names("tensor", version, 0, tuple(names), tuple(numels)))
    for record in session.records():
        for step in run.observe(record):
            found += [f for f in engine.observe(run, step) if f.rule == "parameters_not_updated"]
    assert not engine.faults
    return found


@pytest.mark.parametrize(
    ("loop", "said"),
    [
        (backward_forgotten, "No backward pass came before the 15 steps up to 15: none of the 4 parameters had a gradient."),
        (
            everything_frozen,
            "None of the 4 parameters had a gradient in the 15 steps up to 15: all of them are frozen (requires_grad=False).",
        ),
    ],
)
def test_a_loop_that_trains_nothing_is_found(loop, said):
    with recording(slots=4096) as session:
        loop()
    (finding,) = judged(session)
    assert (finding.severity, finding.step, finding.first_step, finding.summary) == ("critical", 15, 1, said)


@pytest.mark.parametrize(
    "loop",
    [
        one_of_two_frozen,
        one_group_frozen,
        closures,
        in_backward_with_a_dummy,
        sparse,
        adversaries_of_which_one_steps_seldom,
        unreadable,
        scaled,
    ],
)
def test_a_loop_that_trains_is_not(loop):
    with recording(slots=4096) as session:
        loop()
    assert len(session.parts()) >= STEPS
    assert judged(session) == []


def test_steps_that_the_amp_probe_drops_are_none():
    with recording(slots=4096) as session:
        session.media = lambda *_: True
        live.begin(session.recorder, {"first_step": 5, "rounds": 2, "block_steps": 25, "seed": 5, "ticket": 7, "drop": True})
        net = model()
        train(net, [torch.optim.SGD(net.parameters(), 0.01)], steps=120)
    told = {name: value for facts in session.told for name, value in facts.items()}
    assert told["amp_probe_failed"] == ""
    assert told["amp_probe_dropped_batches"] >= 50
    assert judged(session) == []
