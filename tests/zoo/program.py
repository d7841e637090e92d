"""What a program of the zoo is: a small real training with a label that says which rules must speak, and from which step on.

    @broken("the scale is halved for ever", expects=("loss_scale_collapse",), onset=60, source="keras issue 16100")
    def fp16_stuck(): ...trains...

A label is about the program, never about what the rules happen to say of it: it is written before they are run on it.
"""

from collections.abc import Callable
from typing import NamedTuple

#: What a run that has lost its way also shows, rightly: not counted for the rule, and not against it.
DIVERGED = (
    "exploding_gradient",
    "loss_spike",
    "loss_diverging",
    "loss_plateau",
    "update_ratio_high",
    "adam_second_moment",
    "nonfinite_loss",
    "nonfinite_gradient",
    "dead_layer",
)
#: After the first number that is not finite nothing is left to be judged.
RUINED = ("nonfinite_loss", "nonfinite_gradient", "parameters_not_updated", "update_ratio_low", "loss_plateau")


class Program(NamedTuple):
    """`expects`: rules that must find the fault; `allows`: rules that may speak too, because what they say is true of it."""

    name: str
    half: str  # "A": written before the rules were tuned; "B": after
    train: Callable[[], None]
    fault: str  # what is wrong, in words; "" when nothing is
    expects: tuple[str, ...]
    allows: tuple[str, ...]
    onset: int  # the first step that the fault touches
    source: str  # who reports this fault
    ranks: int
    waits: bool  # it sleeps for most of its time, so it runs beside the others

    @property
    def is_healthy(self) -> bool:
        return not self.fault


PROGRAMS: dict[str, Program] = {}


def healthy(*, allows=(), ranks=1, waits=False):
    """A training without a fault: nothing above info may be said. `allows`: notes (info) that are true of it."""
    return lambda train: _add(train, allows=allows, ranks=ranks, waits=waits)


def broken(fault, *, expects, source, onset=1, allows=(), ranks=1, waits=False):
    """A training with one known fault from step `onset` on."""
    label = {"fault": fault, "expects": tuple(expects), "onset": onset, "source": source}
    return lambda train: _add(train, allows=allows, ranks=ranks, waits=waits, **label)


def _add(train, *, allows, ranks, waits, fault="", expects=(), onset=0, source=""):
    half = "A" if ".half_a." in train.__module__ else "B"
    name = train.__name__
    if name in PROGRAMS:
        raise ValueError(f"two programs are called {name}")
    allowed = tuple(rule for rule in allows if rule not in expects)
    PROGRAMS[name] = Program(name, half, train, fault, expects, allowed, onset, source, ranks, waits)
    return train
