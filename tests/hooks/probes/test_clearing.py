"""Gradients that are never cleared are told, whatever way of clearing a loop uses; accumulation and GANs are not."""

import pytest
import torch
from torch import nn

from tests.hooks.recording import recording


def told(session):
    return [(event.step, event.value, event.text) for event in session.events("gradients_kept")]


def train(steps, clear, *, micro_batches=1, optimizer_class=torch.optim.SGD, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = optimizer_class(model.parameters(), lr=1e-4, **options)
    with recording() as session:
        for step in range(1, steps + 1):
            clear(step, model, optimizer, "before")
            for _ in range(micro_batches):
                model(torch.randn(2, 4)).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            clear(step, model, optimizer, "after")
    return told(session)


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("foreach", [True, False])
def test_zero_grad_in_every_form_clears(place, to_none, micro_batches, foreach):
    def clear(_step, _model, optimizer, where):
        if where == place:
            optimizer.zero_grad(set_to_none=to_none)

    assert train(8, clear, micro_batches=micro_batches, foreach=foreach) == []


def test_the_models_own_zero_grad_clears_too():
    assert train(8, lambda _step, model, _optimizer, _where: model.zero_grad()) == []


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_forgotten_zero_grad_is_told_with_its_first_step(micro_batches):
    assert train(8, lambda *_: None, micro_batches=micro_batches) == [(2, 1.0, "0.weight")]


def test_it_is_told_when_it_begins_and_when_it_ends():
    def clear(step, _model, optimizer, where):
        if where == "before" and not 5 <= step <= 9:
            optimizer.zero_grad()

    assert train(14, clear) == [(5, 1.0, "0.weight"), (10, 0.0, "0.weight")]


def test_a_gan_whose_discriminator_gets_gradients_in_the_generators_backward():
    torch.manual_seed(0)
    generator, critic = nn.Linear(2, 4), nn.Linear(4, 1)
    first = torch.optim.SGD(generator.parameters(), lr=1e-4)
    second = torch.optim.SGD(critic.parameters(), lr=1e-4)
    with recording() as session:
        for _ in range(8):
            first.zero_grad()
            critic(generator(torch.randn(3, 2))).mean().backward()
            first.step()
            second.zero_grad()
            critic(generator(torch.randn(3, 2)).detach()).square().mean().backward()
            second.step()
    assert told(session) == []


def test_closures_clear_inside_the_step():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    inputs = torch.randn(8, 4)

    def closure():
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss

    with recording() as session:
        for _ in range(8):
            optimizer.step(closure)
    assert told(session) == []


def test_gradients_that_no_backward_made_are_not_judged():
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with recording() as session:
        for _ in range(8):
            weight.grad = torch.ones(3)
            optimizer.step()
    assert told(session) == []


def test_nothing_is_kept_alive():
    import gc
    import weakref

    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recording() as session:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        gone = weakref.ref(model.weight)
        del model, optimizer
        gc.collect()
        assert gone() is None
        assert not session.faults
