"""What a step's record must say, computed without the hooks' code."""

from __future__ import annotations

import math

CLOSE = 2e-6


def norm(parameters, divided_by=1.0):
    """L2 norm of the finite gradient entries, in float64."""
    squares = 0.0
    for parameter in parameters:
        if parameter.grad is not None:
            entries = parameter.grad.to_dense().double().reshape(-1)
            squares += entries[entries.isfinite()].square().sum().item()
    return math.sqrt(squares) / divided_by
