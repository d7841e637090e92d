"""When baselines begin anew, and which tensors are matrices."""

from __future__ import annotations

import math

import pytest

from gpuwatch.detectors.matrices import matrices
from gpuwatch.detectors.regime import Regime
from gpuwatch.state.names import NameTable
from gpuwatch.state.records import Names
from gpuwatch.state.steps import Step


def restarts(*rates: tuple[float, ...] | float) -> list[int]:
    """The steps (from 1) at which another regime begins, for a series of learning rates."""
    regime = Regime()
    found = []
    for number, given in enumerate(rates, 1):
        groups = tuple((rate, 0.0) for rate in (given if isinstance(given, tuple) else (given,)))
        if regime.observe(Step(number, 0, {}, {}, {0: groups}, (), ())):
            found.append(number)
    return found


@pytest.mark.parametrize(
    ("name", "rates", "expected"),
    [
        ("constant", [0.1] * 5, []),
        ("warm-up", [1e-6 * step for step in range(2, 200)], []),
        ("warm-up from nought", [0.0, 1e-5, 2e-5, 3e-5], []),
        ("decay", [0.1 * 0.99**step for step in range(500)], []),
        ("step decay", [0.1, 0.1, 0.01, 0.01, 0.001], [3, 5]),
        ("restart", [0.1, 0.01, 0.01, 0.1], [2, 4]),
        ("broken", [0.1, 0.1, 10.0], []),
        ("broken, then mended", [0.1, 10.0, 0.1], [3]),
        ("a group added", [(0.1,), (0.1, 0.1)], [2]),
        ("one group of two", [(0.1, 0.1), (0.1, 0.01)], [2]),
        ("no learning rate", [math.nan, math.nan], []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_regimes(name: str, rates: list, expected: list[int]) -> None:
    assert restarts(*rates) == expected, name


def test_optimizers_that_take_turns_do_not_restart_each_other() -> None:
    regime = Regime()
    for number in range(1, 20):
        optimizer = number % 2
        groups = {optimizer: ((0.1 if optimizer else 1e-4, 0.0),)}
        assert not regime.observe(Step(number, 0, {}, {}, groups, (), ()))


def test_the_jump_is_remembered_with_its_rates() -> None:
    regime = Regime()
    for number, rate in enumerate((0.1, 0.1, 10.0), 1):
        regime.observe(Step(number, 0, {}, {}, {0: ((rate, 0.0),)}, (), ()))
    assert regime.jump == (3, 0.1, 10.0)


TENSORS = {
    "transformer.wte.weight": 50_000,
    "embed_tokens.weight": 50_000,
    "pos_embedding": 5_000,
    "layers.0.self_attn.q_proj.weight": 4096,
    "layers.0.self_attn.q_proj.bias": 64,
    "layers.0.input_layernorm.weight": 64,
    "layers.0.ln_1.weight": 64,
    "conv1.weight": 864,
    "bn1.weight": 32,
    "bn1.bias": 32,
    "features.1.weight": 32,  # a BatchNorm in a Sequential: as long as its bias
    "features.1.bias": 32,
    "features.0.weight": 864,
    "features.0.bias": 32,
    "weight": 640,
    "bias": 10,
    "scale": 64,
    "bilinear.weight": 640,
}


def test_matrices_are_told_by_name_and_size() -> None:
    table = NameTable()
    table.add(Names("tensor", 1, 0, tuple(TENSORS), tuple(TENSORS.values())))
    assert [table.name(index) for index in matrices(table)] == [
        "layers.0.self_attn.q_proj.weight",
        "conv1.weight",
        "features.0.weight",
        "weight",
        "bilinear.weight",
    ]
