"""What a user's own code does around steps in a foreign precision, and what must not go wrong there."""

import copy
import dataclasses
import io
import itertools
import pickle
import threading

import pytest
import torch
from gpuwatch_hooks.amp import live
from gpuwatch_hooks.amp.switch import Switch
from torch import nn

from tests.hooks.recording import recording

REQUEST = {"first_step": 5, "rounds": 2, "block_steps": 2, "seed": 5, "ticket": 7}
FOREIGN = 2 * (2 + 2)


class Loop:
    """A float32 training in this process; `step` is one iteration, `around` what the user does between backward and step."""

    def __init__(self, model=None, loss=None, optimizer=None, width=6):
        torch.manual_seed(0)
        self.model = model if model is not None else nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.loss = loss if loss is not None else (lambda output: output.square().mean())
        self.optimizer = optimizer or torch.optim.SGD(self.model.parameters(), 0.01)
        self.width = width
        self.dtypes = []
        self.model.register_forward_pre_hook(lambda *_: self.dtypes.append(torch.is_autocast_enabled("cpu")))

    def step(self):
        self.optimizer.zero_grad()
        loss = self.loss(self.model(torch.randn(8, self.width)))
        loss.backward()
        self.optimizer.step()


def probed(loop, steps=40, request=REQUEST, during=None):
    """The facts that the probe told, the session still recording behind `steps` steps."""
    with recording() as session:
        session.media = lambda *_: True
        live.begin(session.recorder, request)
        for number in range(steps):
            loop.step()
            if during is not None:
                during(number, session)
        return {name: value for facts in session.told for name, value in facts.items()}


def test_dropped_steps_move_no_weight_and_gradients_are_there_behind_them():
    loop, seen = Loop(), []

    def look(_number, _session):
        seen.append(
            (copy.deepcopy(list(loop.model.state_dict().values())), [p.grad is not None for p in loop.model.parameters()])
        )

    facts = probed(loop, during=look)
    assert facts["amp_probe_failed"] == ""
    assert facts["amp_probe_dropped_batches"] == FOREIGN
    assert all(all(there) for _, there in seen), "code that reads p.grad behind the step finds it"
    still = [all(map(torch.equal, a, b)) for (a, _), (b, _) in itertools.pairwise(seen)]
    assert sum(still) == FOREIGN, "weights and BatchNorm's statistics, behind each dropped step and not only its block"


@dataclasses.dataclass(frozen=True)
class Answer:
    prediction: torch.Tensor
    again: list


class Returning(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.inner, self.make = nn.Linear(6, 1), make

    def forward(self, x):
        return self.make(self, self.inner(x))


def strict(output):
    return nn.functional.binary_cross_entropy(output.sigmoid(), torch.ones(8, 1))  # float32 only


def test_a_dataclass_is_given_back_in_float32():
    model = Returning(lambda _self, y: Answer(y, [y]))
    facts = probed(Loop(model, lambda answer: strict(answer.prediction) + strict(answer.again[0])))
    assert facts["amp_probe_failed"] == ""


class Opaque:
    def __init__(self, value):
        self.value = value


class MixesInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight.t(), x.t() @ gradient


class OwnFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 1))

    def forward(self, x):
        return MixesInBackward.apply(x, self.weight)


def kept(self, y):
    self.last = y
    return y


@pytest.mark.parametrize(
    ("model", "loss", "why"),
    [
        (lambda: Returning(lambda _self, y: Opaque(y)), lambda answer: strict(answer.value), "returns is a"),
        (OwnFunction, None, "backward pass fails in bfloat16"),
        (lambda: Returning(kept), None, "in its attribute last"),
    ],
)
def test_what_would_fail_behind_the_forward_pass_is_refused(model, loss, why):
    loop = Loop(model(), loss)
    facts = probed(loop)
    assert why in facts["amp_probe_failed"]
    assert sum(loop.dtypes) == 1, "the trial only"
    if hasattr(loop.model, "last"):
        assert loop.model.last.dtype == torch.float32, "and the trial has left nothing"


def test_hooks_of_the_users_own_inside_the_model_are_refused():
    loop, features = Loop(), []
    loop.model[0].register_forward_hook(lambda _module, _args, output: features.append(output))
    assert "a forward hook of its own on Linear" in probed(loop)["amp_probe_failed"]


def test_activations_that_float16_cannot_hold_are_refused():
    loop = Loop(Returning(lambda _self, y: 1e6 + y), lambda output: output.square().mean() * 1e-12)
    assert "float16" in probed(loop, request={**REQUEST, "dtype": 1})["amp_probe_failed"]


def test_copies_and_files_that_are_made_meanwhile_are_whole_and_carry_nothing_of_ours():
    loop, copies = Loop(Plain()), []
    loop.model._forward_pre_hooks.clear()  # the loop's own would not pickle

    def during(number, _session):
        if number == 12:
            stream = io.BytesIO()
            torch.save(loop.model, stream)
            copies.extend([copy.deepcopy(loop.model), torch.load(io.BytesIO(stream.getvalue()), weights_only=False)])
            assert b"gpuwatch" not in pickle.dumps(loop.model)

    assert probed(loop, during=during)["amp_probe_failed"] == ""
    for one in copies:
        assert one(torch.ones(1, 6)).dtype == torch.float32


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 1)

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("outer", [False, True])
def test_ctrl_c_in_a_forward_pass_leaves_no_autocast_region(outer):
    class Interrupted(nn.Linear):
        def forward(self, x):
            if self.bad:
                raise KeyboardInterrupt
            return super().forward(x)

    model = Interrupted(2, 2)
    model.bad = True
    switch = Switch([model], "cpu")
    switch.set("float32" if outer else "bfloat16")
    with pytest.raises(KeyboardInterrupt), torch.autocast("cpu", torch.bfloat16, enabled=outer):
        model(torch.ones(1, 2))
    model.bad = False
    switch.set(None)
    assert model(torch.ones(1, 2)).dtype == torch.float32
    switch.remove()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.autocast_increment_nesting() == 1, "and torch's own count of regions is right"
    torch.autocast_decrement_nesting()


def in_another_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(30)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("moment", ["forward", "backward", "step"])
def test_a_detach_in_the_middle_of_a_dropped_step_leaves_the_job_as_it_was(moment, elsewhere):
    """From the control thread, or between two bytecodes of the training thread: the step still ends as a dropped one."""
    loop, done = Loop(), []
    before = []

    def leave(now):
        if now == moment and not done and session.recorder.by_name and probe._drops() and loop.dtypes.count(True):
            done.append(copy.deepcopy([*loop.model.parameters()]))
            session.recorder.remove() if not elsewhere else in_another_thread(session.recorder.remove)
            session.ledger.remove()

    loop.model[0].register_forward_pre_hook(lambda *_: leave("forward"))
    loop.loss = lambda output: (leave("backward"), output.square().mean())[1]
    loop.optimizer.register_step_pre_hook(lambda *_: leave("step"))
    with recording() as session:
        session.media = lambda *_: True
        live.begin(session.recorder, REQUEST)
        probe = session.recorder.probes[-1]
        for _ in range(30):
            if not done:
                before = copy.deepcopy(list(loop.model.state_dict().values()))
            loop.step()
            if done:
                break
        after = list(loop.model.state_dict().values())
        assert all(map(torch.equal, before, after)), "neither a weight nor a statistic has moved"
        assert not torch.is_autocast_enabled("cpu")
        assert all(p.grad is not None for p in loop.model.parameters())
        loop.step()
        assert loop.dtypes[-1] is False
        assert not all(map(torch.equal, before, loop.model.state_dict().values())), "and it trains on"
    assert not [hook for hook in loop.model._forward_hooks.values() if type(hook).__name__ == "_Hook"]
    tables = (loop.optimizer._optimizer_step_pre_hooks, loop.optimizer._optimizer_step_post_hooks)
    left = [
        hook for table in tables for hook in table.values() if hook.__module__ is not None and "gpuwatch" in hook.__module__
    ]
    assert left == []


def test_a_second_question_is_answered_at_once():
    def ask(number, session):
        if number == 8:
            live.begin(session.recorder, {**REQUEST, "ticket": 8})
            assert session.told[-1] == {"amp_probe_busy_ticket": 8}

    assert probed(Loop(), during=ask)["amp_probe_ticket"] == 7


def test_probes_one_after_another_leave_one_wrapper_around_schedulers():
    from gpuwatch_hooks import schedulers

    loop = Loop()
    scheduler = torch.optim.lr_scheduler.StepLR(loop.optimizer, 1, 0.99)

    def again(number, session):
        scheduler.step()
        if number in (40, 80):
            live.begin(session.recorder, {**REQUEST, "first_step": 0})
        if number == 119:
            questions, _ = schedulers._held[session.ledger]
            assert questions == []

    probed(loop, steps=120, during=again)
    assert scheduler.last_epoch == 120 - 3 * FOREIGN


def test_a_scheduler_that_steps_once_an_epoch_is_not_held():
    loop = Loop()
    once, each = (torch.optim.lr_scheduler.StepLR(loop.optimizer, 100) for _ in range(2))

    def schedule(number, _session):
        each.step()
        if number % 4 == 3:
            once.step()

    probed(loop, during=schedule)
    assert (once.last_epoch, each.last_epoch) == (10, 40 - FOREIGN)


def test_a_step_that_computes_its_gradients_in_a_closure_is_dropped_too():
    """As Lightning calls its optimizers."""
    loop, seen = Loop(), []

    def step():
        def closure():
            loop.optimizer.zero_grad()
            loss = loop.model(torch.randn(8, 6)).square().mean()
            loss.backward()
            return loss

        loop.optimizer.step(closure)
        seen.append(copy.deepcopy(list(loop.model.state_dict().values())))

    loop.step = step
    facts = probed(loop)
    assert facts["amp_probe_dropped_batches"] == FOREIGN
    still = [all(map(torch.equal, a, b)) for a, b in itertools.pairwise(seen)]
    assert sum(still) == FOREIGN


def test_random_numbers_that_are_drawn_between_steps_are_drawn_once():
    """A sampler that begins an epoch in a dropped block must not get the same order again."""
    loop, drawn = Loop(), []
    probed(loop, during=lambda *_: drawn.append(torch.randint(1 << 40, ()).item()))
    assert len(set(drawn)) == len(drawn)
