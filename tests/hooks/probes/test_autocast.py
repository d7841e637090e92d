"""Autocast regions: nested, disabled, as decorators, of a subclass."""

import pytest
import torch
from torch import nn

from tests.hooks.recording import recording


def precisions(session):
    """The facts that the probe told; the recorder tells the process's memory at the end."""
    return [facts for facts in session.told if "precision" in facts]


def one_step(forward):
    torch.manual_seed(0)
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with recording() as session:
        for _ in range(2):
            forward(model, torch.randn(4, 6)).float().square().mean().backward()
            optimizer.step()
    return session, session.parts()[-1].values


def nested_off(model, inputs):
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        return model(inputs)


def nested_on(model, inputs):
    with torch.autocast("cpu", enabled=False), torch.autocast("cpu", dtype=torch.float16):
        return model(inputs)


@torch.autocast("cpu", dtype=torch.bfloat16)
def decorated(model, inputs):
    return model(inputs)


class Own(torch.autocast):
    def __init__(self):
        super().__init__("cpu", dtype=torch.bfloat16)


def subclass(model, inputs):
    with Own():
        return model(inputs)


def plain(model, inputs):
    return model(inputs)


@pytest.mark.parametrize(("forward", "dtype"), [(plain, 0), (nested_off, 2), (nested_on, 1), (decorated, 2), (subclass, 2)])
def test_the_type_and_the_share(forward, dtype):
    session, values = one_step(forward)
    assert values["autocast_dtype"] == dtype
    assert (values["autocast_ratio"] > 0) == (dtype != 0)
    assert values["autocast_ratio"] <= 1.0
    assert precisions(session) == [{"precision": ("fp32", "fp16", "bf16")[dtype]}]


def test_weights_that_are_half_themselves():
    model = nn.Linear(6, 1).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with recording() as session:
        model(torch.randn(4, 6).bfloat16()).float().mean().backward()
        optimizer.step()
    assert precisions(session) == [{"precision": "bf16-pure"}]


def test_a_loop_that_alternates_is_told_a_few_times():
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with recording() as session:
        for number in range(40):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=number % 2 == 0):
                loss = model(torch.randn(4, 6)).float().mean()
            loss.backward()
            optimizer.step()
    assert len(precisions(session)) == 8
    assert [part.values["autocast_dtype"] for part in session.parts()[:4]] == [2.0, 0.0, 2.0, 0.0]
