"""Applied steps running in which no tensor of any optimizer had a gradient, and what was missing in them."""

from __future__ import annotations

from gpuwatch.detectors.sample import Sample

#: One change may be a checkpoint that was loaded.
_MOVES = 2


class BareSteps:
    """Counts them. A step that the loss scaler skipped tells nothing; one of these ends the count:

    a gradient; a closure, since some optimizers go without derivatives then; weights that change all the same, by an
    optimizer that is given its gradients otherwise, or by something that trains beside it. Where they did so more than once,
    nothing is counted any more: weights are looked at seldom in short steps.
    """

    def __init__(self) -> None:
        self._weight_norms: dict[tuple[int, ...], float] = {}  # optimizers of a step -> the last since a gradient
        self._moves = 0  # times that the weights have changed without a gradient
        self._begin()

    def _begin(self) -> None:
        self.count = 0
        self.first_step = 0
        self._backwards = 0.0  # in these steps
        self._frozen = True  # in all of these steps no tensor wanted a gradient

    def observe(self, sample: Sample) -> int:
        """How many there have been up to this step, 0 when it is none of them."""
        if not sample.applied:
            return self.count
        without = sample.value("tensors_without_gradient")
        if without is None or "grad_norm" in sample.values or "closure_calls" in sample.values:
            self._weight_norms.clear()
            self._begin()
            return 0
        if self._moved(sample):
            self._moves += 1
            self._begin()
        if self._moves >= _MOVES:
            return 0
        if not self.count:
            self.first_step = sample.number
        self.count += 1
        self._backwards += sample.value("micro_batches") or 0.0
        self._frozen = self._frozen and without <= 0.0
        return self.count if without > 0.0 or sample.names.names else 0  # ZeRO may leave a rank without parameters

    def _moved(self, sample: Sample) -> bool:
        if sample.values.get("update_ratio", 0.0) != 0.0:  # NaN, too
            return True
        norm = sample.values.get("weight_norm")
        if norm is None:
            return False
        optimizers = tuple(sample.step.groups)
        before = self._weight_norms.get(optimizers, norm)
        self._weight_norms[optimizers] = norm
        return norm != before

    def sentence(self, sample: Sample) -> str:
        """What was missing, for a finding's summary."""
        without = sample.value("tensors_without_gradient") or 0.0
        number = f"{without or len(sample.names.names):.0f}"
        steps = f"the {self.count} steps up to {sample.number}"
        if self._backwards:
            why = "all of them are frozen (requires_grad=False)" if self._frozen else "the loss does not depend on them"
            return f"None of the {number} parameters had a gradient in {steps}: {why}."
        if self._frozen:
            return f"No backward pass came before {steps}, and all {number} parameters are frozen (requires_grad=False)."
        return f"No backward pass came before {steps}: none of the {number} parameters had a gradient."
