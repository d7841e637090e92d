"""When what was normal says nothing any more: the optimizer was set up anew, or its schedule began again."""

from __future__ import annotations

from gpuwatch.state.steps import Step

#: A learning rate that changes by more than this between two steps has jumped; warm-up and decay move far slower.
JUMP_FACTOR = 3.0
#: A jump up to a rate that the run has known is a restart of its schedule. One far beyond it is not: that is how a broken
#: schedule begins, and the old baseline must stay to show what it does.
_KNOWN_FACTOR = 1.5


class Regime:
    """Follows the learning rates and group counts of a run's optimizers."""

    def __init__(self) -> None:
        self._rates: dict[int, tuple[float, ...]] = {}  # optimizer -> learning rate of each group
        self._highest: dict[int, float] = {}
        self.jump: tuple[int, float, float] | None = None  # the last jump: step, rate before, rate after

    def observe(self, step: Step) -> bool:
        """Whether another regime begins with this step."""
        new = False
        for optimizer, groups in step.groups.items():
            rates = tuple(rate for rate, _ in groups)
            before = self._rates.get(optimizer)
            if before == rates:
                continue
            if before is not None:
                new = self._changed(step.step, optimizer, before, rates) or new
            self._rates[optimizer] = rates
            known = [self._highest.get(optimizer, 0.0), *(rate for rate in rates if rate > 0.0)]
            self._highest[optimizer] = max(known)
        return new

    def _changed(self, step: int, optimizer: int, before: tuple[float, ...], rates: tuple[float, ...]) -> bool:
        if len(before) != len(rates):
            return True
        new = False
        for old, rate in zip(before, rates, strict=True):
            if not (old > 0.0 and rate > 0.0) or 1.0 / JUMP_FACTOR <= rate / old <= JUMP_FACTOR:
                continue  # to or from nought is a freeze or the first step of a warm-up
            self.jump = (step, old, rate)
            new = new or rate <= _KNOWN_FACTOR * self._highest[optimizer]
        return new
