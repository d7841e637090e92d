"""All programs of the zoo: importing this module has both halves register theirs."""

import importlib
import pkgutil

import tests.zoo.half_a
import tests.zoo.half_b
from tests.zoo.program import PROGRAMS

__all__ = ["PROGRAMS"]

for _half in (tests.zoo.half_a, tests.zoo.half_b):
    for _module in pkgutil.iter_modules(_half.__path__):
        importlib.import_module(f"{_half.__name__}.{_module.name}")
