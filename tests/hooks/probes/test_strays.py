"""An optimizer that holds tensors of a layer that was replaced, and loops that look like it and are not."""

import torch
from torch import nn

from tests.hooks.recording import recording


def told(build, steps=9):
    """What is told of a loop over build() -> (model, parameters for the optimizer)."""
    torch.manual_seed(0)
    model, parameters = build()
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    with recording() as session:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(4, 3)).square().mean().backward()
            optimizer.step()
    return [(event.step, event.value, event.text) for event in session.events("untrained_parameters")]


def model():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))


def test_a_layer_that_was_replaced_after_the_optimizer_was_made():
    def build():
        made = model()
        parameters = list(made.parameters())
        made[2] = nn.Linear(4, 1)
        return made, parameters

    assert told(build) == [(4, 2.0, "2.weight"), (8, 2.0, "2.weight")]


def test_a_head_alone_is_trained_on_a_trunk_that_is_not_frozen():
    def build():
        made = model()
        return made, list(made[2].parameters())

    assert told(build) == []


def test_an_unused_tensor_alone():
    def build():
        made = model()
        made.register_parameter("spare", nn.Parameter(torch.zeros(3)))
        return made, list(made.parameters())

    assert told(build) == []


def test_an_optimizer_that_has_not_stepped_yet_holds_the_others():
    torch.manual_seed(0)
    made = model()
    made.register_parameter("spare", nn.Parameter(torch.zeros(3)))
    optimizer = torch.optim.SGD([*made[0].parameters(), made.spare], lr=1e-3)
    later = torch.optim.SGD(made[2].parameters(), lr=1e-3)
    with recording() as session:
        for _ in range(9):
            optimizer.zero_grad()
            made(torch.randn(4, 3)).square().mean().backward()
            optimizer.step()
        assert later.param_groups
    assert session.events("untrained_parameters") == []
