"""Who steps, how often, inside what: each optimizer step is one record, and an iteration is one step."""

import copy
import gc
import io
import math
import time
import weakref

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.hooks.recording import recording
from tests.hooks.traps.truth import CLOSE, norm


def loss_of(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


@pytest.mark.parametrize("divide", [1, 4])
def test_accumulation(model, batches, divide):
    """Trap 9: one sample a step; the loss is the one that the step has minimised, also in an epoch's last, shorter step."""
    optimizer, losses, norms = torch.optim.SGD(model.parameters(), lr=1e-3), [], []
    with recording() as session:
        for micro in (batches[:4], batches[4:8], batches[8:12], batches[12:15]):
            optimizer.zero_grad()
            values = []
            for batch in micro:
                loss = loss_of(model, batch)
                values.append(loss.item())
                (loss / divide).backward()
            losses.append(sum(values) / len(values))
            norms.append(norm(model.parameters()))
            optimizer.step()
    parts = session.parts()
    assert [part.values["micro_batches"] for part in parts] == [4, 4, 4, 3]
    assert [part.values["loss"] for part in parts] == pytest.approx(losses, rel=1e-6)
    assert [part.values["grad_norm"] for part in parts] == pytest.approx(norms, rel=CLOSE)


def test_a_division_that_is_not_accumulation(model, batches):
    """Dividing by another number than that of the backward calls is part of the user's loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with recording() as session:
        for batch in batches[:3]:
            loss = loss_of(model, batch) / 4
            loss.backward()
            optimizer.step()
            assert session.parts()[-1].values["loss"] == loss.item()


def test_the_loss_may_be_changed_in_place_afterwards(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with recording() as session:
        loss = loss_of(model, batches[0])
        value = loss.item()
        loss.backward()
        loss.detach().zero_()
        optimizer.step()
    assert session.parts()[0].values["loss"] == value


def test_a_job_that_never_steps_a_torch_optimizer(model, batches, monkeypatch):
    """Its backward calls are forgotten in time, and nothing is recorded."""
    from gpuwatch_hooks.probes import loss

    monkeypatch.setattr(loss, "MAX_BACKWARDS", 10)
    with recording() as session:
        for _ in range(4):
            for batch in batches:
                loss_of(model, batch).backward()
        assert len(session.recorder.by_name["loss"]._window) <= 10
    assert session.records() == []


def test_roots_that_are_no_loss(model, batches):
    """A vector needs a gradient from outside: there is no loss to report, but the step is recorded."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with recording() as session:
        output = model(batches[0][0])
        output.backward(torch.ones_like(output))
        optimizer.step()
        first, second = loss_of(model, batches[1]), loss_of(model, batches[2])
        torch.autograd.backward([first, second])
        optimizer.step()
    parts = session.parts()
    assert "loss" not in parts[0].values
    assert parts[0].values["micro_batches"] == 1
    assert parts[1].values["loss"] == pytest.approx(first.item() + second.item(), rel=1e-12)


def test_a_gan(batches):
    """Trap 16: only the optimizer's own tensors; the generator's backward leaves gradients in the discriminator."""
    generator, critic = nn.Linear(6, 6), nn.Linear(6, 1)
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=1e-3)
    optimizer_c = torch.optim.Adam(critic.parameters(), lr=1e-3)
    expected = []
    with recording() as session:
        for inputs, _ in batches[:4]:
            fake = generator(inputs)
            optimizer_c.zero_grad()
            loss_c = critic(fake.detach()).mean() - critic(inputs).mean()
            loss_c.backward()
            expected.append((loss_c.item(), norm(critic.parameters())))
            optimizer_c.step()
            optimizer_g.zero_grad()
            loss_g = -critic(fake).mean()
            loss_g.backward()
            expected.append((loss_g.item(), norm(generator.parameters())))
            optimizer_g.step()
    parts = session.parts()
    assert [(part.step, part.optimizer) for part in parts] == [(s, o) for s in (1, 2, 3, 4) for o in (0, 1)]
    assert [part.complete for part in parts] == [False, False] + [False, True] * 3
    assert [part.values["loss"] for part in parts] == pytest.approx([loss for loss, _ in expected], rel=1e-12)
    assert [part.values["grad_norm"] for part in parts] == pytest.approx([value for _, value in expected], rel=CLOSE)
    assert [part.values["micro_batches"] for part in parts] == [1] * 8
    assert session.tables["tensor"][1] == ["critic.weight", "critic.bias", "generator.weight", "generator.bias"]
    assert session.tables["optimizer"][1] == ["optimizer_c", "optimizer_g"]


def test_one_of_two_optimizers_steps_more_often(batches):
    """Five critic steps for one of the generator: each repetition begins an iteration, and none is closed too early."""
    first, second = nn.Linear(6, 1), nn.Linear(6, 1)
    often, seldom = torch.optim.SGD(first.parameters(), lr=1e-3), torch.optim.SGD(second.parameters(), lr=1e-3)
    with recording() as session:
        for number, batch in enumerate(batches[:9]):
            loss_of(first, batch).backward()
            often.step()
            if number % 3 == 2:
                loss_of(second, batch).backward()
                seldom.step()
    steps = [(part.step, part.optimizer, part.complete) for part in session.parts()]
    closed, seen = set(), set()
    for step, optimizer, complete in steps:  # no part of a step that was already called complete, none twice
        assert step not in closed
        assert (step, optimizer) not in seen
        seen.add((step, optimizer))
        if complete:
            closed.add(step)
    assert [step for step, _, _ in steps] == sorted(step for step, _, _ in steps)
    assert [(step, optimizer) for step, optimizer, _ in steps[-6:]] == [(6, 0), (6, 1), (7, 0), (8, 0), (9, 0), (9, 1)]


def test_two_optimizers_on_one_loss(batches):
    first, second = nn.Linear(6, 1), nn.Linear(6, 1)
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-3) for m in (first, second)]
    with recording() as session:
        for inputs, targets in batches[:3]:
            loss = nn.functional.mse_loss(first(inputs) + second(inputs), targets)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            assert [part.values["loss"] for part in session.parts()[-2:]] == [loss.item()] * 2


def test_closures(model, batches):
    """Trap 17: the gradients exist only inside; the loss is that of the weights that the step began with."""
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5, history_size=3)
    firsts, counts, results = [], [], []
    with recording() as session:
        for batch in batches[:3]:
            losses = []

            def closure():
                optimizer.zero_grad()
                loss = loss_of(model, batch)  # noqa: B023 - called within this turn
                loss.backward()
                losses.append(loss.item())  # noqa: B023
                return loss

            results.append(optimizer.step(closure).item())
            firsts.append(losses[0])
            counts.append(len(losses))
            last_norm = norm(model.parameters())
    parts = session.parts()
    assert [part.values["loss"] for part in parts] == firsts == results
    assert [part.values["closure_calls"] for part in parts] == counts
    assert parts[-1].values["grad_norm"] == pytest.approx(last_norm, rel=CLOSE)
    assert all(part.values["backward_seconds"] > 0 and part.values["forward_seconds"] > 0 for part in parts[1:])


@pytest.mark.parametrize("keyword", [False, True])
def test_closure_as_argument_or_keyword(model, batches, keyword):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, batches[0])
        loss.backward()
        return loss

    with recording() as session:
        result = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
    part = session.parts()[0]
    assert part.values["closure_calls"] == 1
    assert part.values["loss"] == result.item()


def test_optimizers_inside_backward(model, batches):
    """Trap 18: one optimizer a parameter, gradients freed as soon as they are used: one record for each backward."""
    optimizers = {p: torch.optim.SGD([p], lr=1e-3) for p in model.parameters()}
    squares, expected, losses = [], [], []

    def step_now(parameter):
        squares.append(norm([parameter]) ** 2)
        optimizers[parameter].step()
        parameter.grad = None

    handles = [p.register_post_accumulate_grad_hook(step_now) for p in model.parameters()]
    with recording() as session:
        for batch in batches[:4]:
            squares.clear()
            loss = loss_of(model, batch)
            loss.backward()
            losses.append(loss.item())
            expected.append(math.sqrt(sum(squares)))
    for handle in handles:
        handle.remove()
    parts = session.parts()
    assert [part.step for part in parts] == [1, 2, 3, 4]
    assert [part.values["grad_norm"] for part in parts] == pytest.approx(expected, rel=CLOSE)
    assert [part.values["loss"] for part in parts] == losses
    assert sorted(session.tables["tensor"][1]) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert len(session.rows()[0]) == 4
    assert all(part.values["backward_seconds"] > 0 for part in parts[1:])


class Wrapped(torch.optim.SGD):
    """A subclass that calls its parent's step, and goes on: both are hooked when both classes have been used."""

    def step(self, closure=None):
        result = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(0.5)
        return result


def test_super_step_counts_once(model, batches):
    """Trap 19, also for an optimizer that was built before the hooks came. The step is over when the outer one is."""
    plain = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.0)  # patches SGD.step itself
    optimizer = Wrapped(model.parameters(), lr=0.0)
    fired = []
    handle = register_optimizer_step_pre_hook(lambda *_: fired.append(1))
    with recording() as session:
        for batch in batches[:3]:
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
        time.sleep(0.05)  # between the steps, in none of the phases that have an entrance
        optimizer.step()
    handle.remove()
    assert len(fired) == 8, "this torch calls the hooks once: the test shows nothing"
    parts = session.parts()
    assert [part.step for part in parts] == [1, 2, 3, 4]
    assert [part.values["update_ratio"] for part in parts] == pytest.approx([0.5] * 4)
    assert parts[3].values["other_seconds"] > 0.045
    assert plain.param_groups


def test_a_step_that_raises_does_not_stop_the_record(model, batches):
    """A closure fails (out of memory, say), the loop catches it and goes on: later steps are recorded as before."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def failing():
        raise RuntimeError("the user's own")

    with recording() as session:
        for number, batch in enumerate(batches[:5]):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            if number == 2:
                with pytest.raises(RuntimeError, match="the user's own"):
                    optimizer.step(failing)
            else:
                optimizer.step()
    parts = session.parts()
    assert [part.step for part in parts] == [1, 2, 3, 4]
    for part in parts[1:]:
        phases = sum(part.values[f"{phase}_seconds"] for phase in ("data", "forward", "backward", "optimizer", "other"))
        assert phases == pytest.approx(part.values["step_seconds"])


def test_lr_scheduler(model, batches):
    """Trap 20: it patches `step` on the instance; the rate in the record is the one that the step used."""
    optimizer = torch.optim.AdamW(
        [{"params": model[0].parameters(), "weight_decay": 0.1}, {"params": model[2].parameters(), "lr": torch.tensor(0.5)}],
        lr=0.1,
        weight_decay=0.0,
    )
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    used = []
    with recording() as session:
        for batch in batches[:4]:
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            used.append([float(group["lr"]) for group in optimizer.param_groups])
            optimizer.step()
            scheduler.step()
    parts = session.parts()
    assert [[rate for rate, _ in part.groups] for part in parts] == used
    assert parts[0].groups[0][1] == 0.1


def test_a_group_without_weight_decay_has_none(model, batches):
    optimizer = torch.optim.Rprop(model.parameters(), lr=0.01)
    with recording() as session:
        loss_of(model, batches[0]).backward()
        optimizer.step()
    assert session.parts()[0].groups[0][0] == 0.01
    assert math.isnan(session.parts()[0].groups[0][1])


def test_frozen_then_unfrozen_and_added_groups(model, batches):
    """Trap 26: the table follows the optimizer's tensors."""
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=1e-3)
    with recording() as session:
        for number, batch in enumerate(batches[:4]):
            optimizer.zero_grad()
            if number == 2:
                model[0].requires_grad_(True)
                optimizer.add_param_group({"params": model[0].parameters()})
            loss_of(model, batch).backward()
            true_norm = norm(p for group in optimizer.param_groups for p in group["params"])
            optimizer.step()
            assert session.parts()[-1].values["grad_norm"] == pytest.approx(true_norm, rel=CLOSE)
            names = ["2.weight", "2.bias"] + (["0.weight", "0.bias"] if number >= 2 else [])
            assert session.tables["tensor"][1] == names
    assert session.tables["tensor"][0] == 2
    assert len(session.parts()[-1].groups) == 2


def test_optimizers_still_pickle_and_copy(model, batches):
    """Trap 36: nothing of ours sticks to the user's objects."""
    optimizer = torch.optim.Adam(model.parameters())
    with recording():
        loss_of(model, batches[0]).backward()
        optimizer.step()
        buffer = io.BytesIO()
        torch.save([model, optimizer], buffer)
        copy.deepcopy(model), copy.deepcopy(optimizer)
    loaded, _ = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert torch.equal(loaded[0].weight, model[0].weight)
    for module in model.modules():  # trap 33: no hooks on modules, none on tensors
        assert not module._forward_hooks and not module._forward_pre_hooks and not module._backward_hooks  # noqa: PT018
    assert all(not p._backward_hooks for p in model.parameters())


def test_an_optimizer_that_is_made_anew(model, batches):
    """A loop that makes a new optimizer for every task: the same tensors are the same series."""
    with recording() as session:
        for _ in range(3):
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            optimizer.zero_grad()
            loss_of(model, batches[0]).backward()
            optimizer.step()
            del optimizer
    parts = session.parts()
    assert [(part.step, part.optimizer) for part in parts] == [(1, 0), (2, 0), (3, 0)]
    assert session.tables["tensor"][0] == 1


def test_ever_new_models_and_optimizers(batches):
    """Meta-learning: the number of optimizers in the record stays bounded."""
    with recording() as session:
        for number in range(100):
            model = nn.Linear(6, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            loss_of(model, batches[number % 20]).backward()
            optimizer.step()
            del model, optimizer
    assert max(part.optimizer for part in session.parts()) < 33
    assert len(session.tables["optimizer"][1]) <= 32
    assert len(session.parts()) == 100


def test_what_the_user_lets_go_is_let_go(batches):
    """A sweep over settings in one process: the last model's memory is free when the next one is built."""
    model = nn.Linear(6, 1)
    optimizer = torch.optim.Adam(model.parameters())
    gone = [weakref.ref(thing) for thing in (model, model.weight, optimizer)]
    with recording() as session:
        for batch in batches[:3]:
            loss = loss_of(model, batch)
            loss.backward()
            gone.append(weakref.ref(loss))
            optimizer.step()
        optimizer.zero_grad()
        del model, optimizer, loss
        gc.collect()
        assert [reference() for reference in gone] == [None] * 6
    assert len(session.parts()) == 3


class _Averaging(torch.optim.Optimizer):
    """As Lookahead is written: an optimizer whose step lets another one step the same tensors."""

    def __init__(self, inner):
        self.optimizer = inner
        super().__init__(inner.param_groups, {})

    def step(self, closure=None):
        return self.optimizer.step(closure)


def test_an_optimizer_that_steps_another_one_of_the_same_tensors(model, batches):
    """The gradients are those of one step, not of two: the norm would come out 1.41 times what it is."""
    optimizer, true_norms = _Averaging(torch.optim.Adam(model.parameters(), lr=1e-3)), []
    with recording() as session:
        for inputs, targets in batches[:3]:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            true_norms.append(norm(model.parameters()))
            optimizer.step()
    parts = session.parts()
    assert [part.step for part in parts] == [1, 2, 3]
    assert [part.values["grad_norm"] for part in parts] == pytest.approx(true_norms, rel=CLOSE)
    assert session.tables["tensor"][1] == ["0.weight", "0.bias", "2.weight", "2.bias"]
