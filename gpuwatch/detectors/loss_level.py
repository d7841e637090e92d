"""How far the loss of a step lies above its recent level: what the loss rules share.

It is measured twice, in the loss and in its logarithm, and both must agree: with small batches the loss is skewed to the
right, so that 8 sigmas of its own are nothing rare; its logarithm alone would miss a spike in a noisy run.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from gpuwatch.detectors.baseline import Baseline
from gpuwatch.detectors.learned import Learned
from gpuwatch.detectors.sample import Sample

#: Sigma is never taken below this share of the median: a smooth loss is not proof against a ripple.
_FLOOR_RATIO = 0.02
#: Rises below this share of the first losses do not matter: a loss that has come down to nothing jumps about.
_MATTERS_RATIO = 0.01


class Rise(NamedTuple):
    loss: float
    median: float  # of the last 128 applied steps
    sigmas: float  # of the loss
    log_sigmas: float  # of its logarithm
    ratio: float  # over the median
    start: float  # what an untrained model's loss was
    matters: bool  # more than 1 % of what the loss was at the start, and not within its last few percent (learned.py)


class LossLevel:
    """Follows one run's loss. Only for positive losses, of runs with one loss: those of a GAN measure no progress."""

    def __init__(self) -> None:
        self._learned = Learned()
        self._losses = Baseline(floor_ratio=_FLOOR_RATIO)
        self._logs = Baseline(floor=_FLOOR_RATIO)

    def observe(self, sample: Sample) -> Rise | None:
        """The step's place against the steps before it; None when there is nothing to compare."""
        if sample.new_regime:
            self._losses.restart()
            self._logs.restart()
        loss = self._learned.observe(sample)
        if loss is None:
            return None
        rise = None
        log = math.log(loss)
        if self._losses.ready:
            median = self._losses.median
            start = self._learned.start
            matters = loss - median > _MATTERS_RATIO * start and not self._learned.has_nearly_all(loss)
            rise = Rise(loss, median, self._losses.score(loss), self._logs.score(log), loss / median, start, matters)
        self._losses.add(loss)
        self._logs.add(log)
        return rise
