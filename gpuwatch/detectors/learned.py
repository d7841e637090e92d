"""How much of its first loss a run still has: what happens to the last few percent says nothing about its health.

Adam throws a run that has come down to a loss of 1e-6 up by a factor of a thousand now and then, and it returns by itself;
against its own recent level nothing looks more like an explosion.
"""

from __future__ import annotations

from gpuwatch.detectors.sample import Sample

#: A run whose loss is below this share of its first losses has learned nearly everything.
_NEARLY_ALL_RATIO = 0.05
_FIRST_LOSSES = 5


class Learned:
    """Follows the loss of a run with one positive loss; says nothing of others."""

    def __init__(self) -> None:
        self.start = 0.0  # mean of the first losses: what an untrained model has
        self._seen = 0

    def observe(self, sample: Sample) -> float | None:
        """The step's loss, or None when it cannot be compared: not applied, not positive, or of several optimizers."""
        loss = sample.value("loss")
        if loss is None or loss <= 0.0 or not sample.applied or len(sample.step.losses) > 1:
            return None
        if self._seen < _FIRST_LOSSES:
            self._seen += 1
            self.start += (loss - self.start) / self._seen
        return loss

    def has_nearly_all(self, loss: float | None) -> bool:
        """Whether this loss, as `observe` returned it, is next to nothing beside the first ones."""
        return loss is not None and self._seen == _FIRST_LOSSES and loss < _NEARLY_ALL_RATIO * self.start
