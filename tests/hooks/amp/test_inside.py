"""A model that the loop never calls itself, as Lightning's training_step uses its parts: those are switched, to the bit."""

import sys

import pytest
import torch
from gpuwatch_hooks.amp import live
from gpuwatch_hooks.amp.inside import Calls, candidates, without_those_inside
from gpuwatch_hooks.amp.plan import Plan
from torch import nn

from tests.hooks.recording import recording

FIRST = 6
REQUEST = {"first_step": FIRST, "rounds": 2, "block_steps": 2, "seed": 5, "ticket": 7}
PLAN = Plan(["float32", "bfloat16"], 2, 2, 5)
DROPPED = [FIRST - 1 + step for step in range(PLAN.steps) if PLAN.variant_of(step) == 1]
STEPS = 30


@pytest.fixture(autouse=True)
def nothing_compiled():
    """As in a fresh process: what other tests have compiled in this one is counted by torch."""
    counters = getattr(sys.modules.get("torch._dynamo.utils"), "counters", {})
    for table in ("frames", "stats"):
        counters.pop(table, None)
    yield
    for table in ("frames", "stats"):
        counters.pop(table, None)


class Task(nn.Module):
    """Two networks with a loss that knows float32 only, a Dropout before them, and a norm that only some steps begin with."""

    def __init__(self):
        super().__init__()
        self.dropout, self.loss = nn.Dropout(0.1), nn.BCELoss()
        self.seldom = nn.BatchNorm1d(6)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2))
        self.head = nn.Linear(8, 1)
        self.seen = []
        self.watch(self.net, "net")
        self.watch(self.head, "head")
        self.watch(self.loss, "loss")

    def watch(self, module, name):
        def entered(_module, args):
            dtypes = {one.dtype for one in args}
            self.seen.append((name, torch.is_autocast_enabled("cpu"), dtypes == {torch.float32}))

        module.register_forward_pre_hook(entered)

    def training_step(self, number, batch):
        if number % 3 == 1:
            batch = self.seldom(batch)
        hidden = self.net(self.dropout(batch))
        return self.loss(self.head(hidden).sigmoid(), torch.ones(8, 1))


def trained(without=(), probe=True, step=None):
    """(batch -> loss and all that the model holds behind it, facts, the Task)."""
    torch.manual_seed(0)
    task = Task()
    optimizer = torch.optim.SGD(task.parameters(), 0.05, momentum=0.9)
    data = torch.Generator().manual_seed(1)
    batches = [torch.randn(8, 6, generator=data) for _ in range(STEPS)]
    course = {}

    def run():
        for number, batch in enumerate(batches):
            if number in without:
                continue
            task.seen.append(number)
            optimizer.zero_grad()
            loss = (step or Task.training_step)(task, number, batch)
            loss.backward()
            optimizer.step()
            course[number] = [loss.detach().clone(), *(value.clone() for value in task.state_dict().values())]

    if not probe:
        run()
        return course, {}, task
    with recording() as session:
        session.media = lambda *_: True
        live.begin(session.recorder, REQUEST)
        run()
        return course, {name: value for facts in session.told for name, value in facts.items()}, task


def calls_by_batch(task):
    found = {}
    for one in task.seen:
        if isinstance(one, int):
            calls = found[one] = []
        else:
            calls.append(one)
    return found


def test_the_parts_that_a_step_calls_are_switched_and_its_loss_is_not():
    _, facts, task = trained()
    assert facts["amp_probe_failed"] == ""
    assert facts["amp_probe_dropped_batches"] == len(DROPPED)
    for number, calls in calls_by_batch(task).items():
        foreign = number in DROPPED
        expected = [("net", foreign, True), ("head", foreign, True), ("loss", False, True)]
        assert calls[:3] == expected, number
    hooks = [hook for one in task.modules() for hook in one._forward_hooks.values()]
    assert hooks == [], "and nothing is left in any module"


def test_the_training_goes_on_to_the_bit_as_if_the_dropped_batches_had_not_been_there():
    probed, _, _ = trained()
    plain, _, _ = trained(without=DROPPED, probe=False)
    assert len(plain) == STEPS - len(DROPPED)
    for number, values in plain.items():
        assert all(map(torch.equal, values, probed[number])), number


def test_twin_the_dropped_batches_were_computed_in_the_other_precision():
    probed, _, _ = trained()
    plain, _, _ = trained(probe=False)
    first = DROPPED[0]
    assert torch.equal(probed[first - 1][0], plain[first - 1][0])
    assert not torch.equal(probed[first][0], plain[first][0])


def test_a_step_that_calls_no_module_at_all_is_refused():
    def step(task, _number, batch):
        return task.loss((batch @ task.net[0].weight.t()).mean(1).sigmoid(), torch.ones(8))

    _, facts, task = trained(step=step)
    assert "nor a module inside it" in facts["amp_probe_failed"]
    assert not any(autocast for calls in calls_by_batch(task).values() for _, autocast, _ in calls)


def test_a_module_that_is_compiled_is_not_looked_into():
    task = Task()
    inner = task.net
    task.net = torch.compile(inner)
    found, reason = candidates([task])
    assert reason is None
    assert task.net in found
    assert inner[0] not in found
    task.head.compile()
    found, reason = candidates([task])
    assert found == []
    assert "compiled in place" in reason


def test_a_function_that_is_compiled_around_the_parts_is_left_alone():
    task = Task()
    assert candidates([task])[1] is None
    torch.compile(lambda x: 2 * task.net[0](x), backend="eager", fullgraph=True)(torch.ones(2, 6))
    found, reason = candidates([task])
    assert found == []
    assert "may be compiled" in reason


def test_hooks_stay_outside_of_what_is_switched_only():
    task = Task()
    assert without_those_inside(list(task.modules()), [task.net]) == [
        task,
        task.dropout,
        task.loss,
        task.seldom,
        task.net,
        task.head,
    ]


@pytest.mark.parametrize(("width", "too_large"), [(2**10, False), (2**26 + 1, True)])
def test_activations_are_kept_up_to_a_limit(width, too_large):
    calls, head = Calls(), nn.Linear(2, 2)
    calls.add(head, (torch.ones(1).requires_grad_().expand(width),), {})
    assert calls.too_large is too_large
    assert bool(calls.of) is not too_large
