"""Names for tensors, found where the loop keeps its model, without touching anything of the user's."""

import functools
import gc
import sys
import types
import weakref

import pytest
import torch
from gpuwatch_hooks import discovery
from torch import nn

from tests.hooks.recording import recording


def net():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))


def names_of_a_step(optimizer, session):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return session.tables["tensor"][1]


NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_local_variable():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recording() as session:
        assert names_of_a_step(optimizer, session) == NAMES


def test_a_variable_of_a_caller_further_out():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def inner(step, session):
        return functools.partial(names_of_a_step, step, session)()

    with recording() as session:
        assert inner(optimizer, session) == NAMES
    assert model


class Trainer:
    def __init__(self, holder):
        self.holder = holder(net())

    def fit(self, optimizer, session):
        return names_of_a_step(optimizer, session)

    def parameters(self):
        inner = self.holder
        inner = inner["model"] if isinstance(inner, dict) else inner[0] if isinstance(inner, list) else inner
        return getattr(inner, "model", inner).parameters()


@pytest.mark.parametrize(
    "holder",
    [lambda m: m, lambda m: [m], lambda m: {"model": m}],
    ids=["attribute", "list of an attribute", "dict of an attribute"],
)
def test_a_trainer_object(holder):
    trainer = Trainer(holder)
    optimizer = torch.optim.SGD(trainer.parameters(), lr=0.1)
    with recording() as session:
        assert trainer.fit(optimizer, session) == NAMES


def test_a_list_of_models():
    models = [net(), net()]
    optimizer = torch.optim.SGD([p for m in models for p in m.parameters()], lr=0.1)
    with recording() as session:
        names = names_of_a_step(optimizer, session)
    assert names == [f"models{i}.{name}" for i in (0, 1) for name in NAMES]


class Wrapper(nn.Module):
    def __init__(self, name, inner):
        super().__init__()
        self.add_module(name, inner)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: Wrapper("module", m),
        lambda m: Wrapper("module", Wrapper("_orig_mod", m)),
        lambda m: Wrapper("_orig_mod", Wrapper("module", m)),
        lambda m: Wrapper("_fsdp_wrapped_module", m),
        lambda m: torch.compile(m, backend="eager"),
        nn.DataParallel,
    ],
)
def test_wrappers_leave_no_prefix(wrap):
    model = wrap(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recording() as session:
        assert names_of_a_step(optimizer, session) == NAMES


def test_wrappers_inside():
    inner = Wrapper("layers", nn.Sequential(Wrapper("_checkpoint_wrapped_module", nn.Linear(2, 1))))
    assert [discovery.stripped(name) for name, _ in inner.named_parameters()] == ["layers.0.weight", "layers.0.bias"]
    assert discovery.stripped("module.module.weight") == "weight"
    assert discovery.stripped("block.module.weight") == "block.module.weight"


def test_both_the_model_and_its_wrapper_in_sight():
    model = net()
    ddp = Wrapper("module", model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recording() as session:
        assert names_of_a_step(optimizer, session) == NAMES
    assert ddp


def test_an_averaged_copy_and_a_teacher_need_no_prefix():
    model, average, teacher = net(), net(), net().requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recording() as session:
        assert names_of_a_step(optimizer, session) == NAMES
    assert average
    assert teacher


def test_no_model_in_sight():
    optimizer = torch.optim.SGD([{"params": net().parameters()}, {"params": [nn.Parameter(torch.zeros(5))]}], lr=0.1)
    with recording() as session:
        names = names_of_a_step(optimizer, session)
    assert names == ["group0.0[3x4]", "group0.1[3]", "group0.2[1x3]", "group0.3[1]", "group1.0[5]"]


@pytest.mark.skipif("param_names" not in torch.optim.Optimizer.state_dict.__doc__, reason="this torch has no named parameters")
def test_names_that_the_optimizer_was_given():
    optimizer = torch.optim.SGD([("module.layer.weight", nn.Parameter(torch.zeros(5)))], lr=0.1)
    with recording() as session:
        assert names_of_a_step(optimizer, session) == ["layer.weight"]


def test_names_that_the_user_has_told():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recording() as session:
        session.recorder.roster.give_names((p, f"told.{name}") for name, p in model.named_parameters())
        assert names_of_a_step(optimizer, session) == [f"told.{name}" for name in NAMES]


def test_a_model_that_comes_into_sight_later():
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1)
    holder = types.SimpleNamespace(model=None)
    with recording() as session:
        assert names_of_a_step(optimizer, session)[0] == "group0.0[3x4]"
        holder.model = nn.Sequential()
        for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
            holder.model.register_parameter(f"p{index}", parameter)
        assert names_of_a_step(optimizer, session) == ["p0", "p1", "p2", "p3"]
        assert session.tables["tensor"][0] == 2


class Trap:
    """An object of the user's whose attributes do something when they are asked for."""

    touched = 0

    @property
    def model(self):
        Trap.touched += 1
        raise RuntimeError("asked for")

    def __getattr__(self, name):
        Trap.touched += 1
        raise AttributeError(name)

    @property
    def __class__(self):
        Trap.touched += 1
        return int

    def __len__(self):
        Trap.touched += 1
        return 0

    def __iter__(self):
        Trap.touched += 1
        return iter(())


class Slots:
    __slots__ = ()

    def __getattr__(self, name):
        Trap.touched += 1
        raise AttributeError(name)


def test_no_code_of_the_users_objects_runs():
    model, trap, traps = net(), Trap(), {"trap": Trap(), "list": [Trap()], "slots": Slots()}
    optimizer = torch.optim.SGD([p.detach().requires_grad_() for p in model.parameters()], lr=0.1)
    with recording() as session:
        names_of_a_step(optimizer, session)
    assert Trap.touched == 0
    assert trap is not traps


def test_the_loops_variables_are_not_kept_alive():
    """Reading a frame's variables makes a dict that the frame keeps: it would hold the first step's tensors for ever."""

    class Batch:
        pass

    def loop(session):
        model = net()
        optimizer = torch.optim.SGD([p.detach().clone().requires_grad_() for p in model.parameters()], lr=0.1)
        batch = Batch()
        gone = weakref.ref(batch)
        names_of_a_step(optimizer, session)
        del batch
        gc.collect()
        return gone()

    with recording() as session:
        assert loop(session) is None


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="locals() is a copy from 3.13 on")
def test_locals_that_the_user_holds_stay_whole():
    def loop(session):
        learning_rate = 0.1
        options = locals()
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
        names_of_a_step(optimizer, session)
        return options

    with recording() as session:
        options = loop(session)
    assert options["learning_rate"] == 0.1
    assert "session" in options
