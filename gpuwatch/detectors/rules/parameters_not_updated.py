"""The optimizer steps, and weights that should change do not.

## What it means

Either the optimizer holds other tensors than the ones that are trained (it was made before the model was moved, wrapped,
re-created or loaded), so that none of its tensors ever gets a gradient; or weights get a gradient and stay the same, bit by
bit: updates too small for the number format (bfloat16 weights have 8 bits), a learning rate of zero for one group, or code
that writes the old values back.

## The test

Either is enough, in `looks` looks running.

* The loop computed a loss and called backward, and not one of the optimizer's trainable tensors had a gradient.
* A weight matrix has not changed at all in an applied step with a learning rate above zero in every group, although its
  gradient, over its weights, is at least a hundredth of the median of all matrices. When no matrix changes, the gradient
  must also be at least a hundredth of what it was in the first 20 steps: a run that has converged stands still by right.

Updates are measured at some steps only (see the overhead budget), so the second way may take more steps.

## What to do

1. Make the optimizer after the model is in its final form (`.to(device)`, wrapped, adapters added), from its `parameters()`.
2. Keep weights in float32 and use autocast, when they are bfloat16 or float16.
3. Print the learning rate of every group (`train/lr/GROUP` in TensorBoard).

## When it is wrong

A loop that alternates several optimizers over the same tensors, or averages weights back (lookahead), may undo a step between
two looks. Steps of a closure that is called several times are not judged.
"""

from __future__ import annotations

from array import array
from collections import deque
from statistics import median
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.matrices import matrices
from gpuwatch.detectors.rule import Quiet, Rule, Steps, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample

_COMPARABLE_RATIO = 0.01
_FIRST_NORMS = 20


class Limits(Thresholds, frozen=True):
    looks: Annotated[Steps, Meta(description="looks running")] = 5


class ParametersNotUpdated(Rule[Limits]):
    name = "parameters_not_updated"
    severity = "critical"
    statistic = "looks running at which nothing changed"
    action = "Make the optimizer from the parameters of the final model; keep weights in float32; check each group's rate."
    thresholds_type = Limits
    quiet_steps = 3

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._empty = 0  # steps running without any gradient
        self._still: dict[int, int] = {}  # matrix -> looks running
        self._first_norms: deque[float] = deque(maxlen=_FIRST_NORMS)
        self._table_version = -1
        self._matrices: list[int] = []

    def judge(self, sample: Sample) -> Verdict | Quiet:
        norm = sample.value("grad_norm")
        if norm is not None and len(self._first_norms) < _FIRST_NORMS:
            self._first_norms.append(norm)
        without = sample.value("tensors_without_gradient")
        if norm is None and "grad_norm" not in sample.values and (without or 0.0) > 0.0 and sample.value("micro_batches"):
            return self._judge_empty(sample, without or 0.0)
        self._empty = 0
        if not sample.applied or sample.value("closure_calls") or not _rates_above_zero(sample):
            return Quiet.UNMEASURED
        updates, weights = sample.column("update", "norm"), sample.column("weight", "norm")
        gradients = sample.gradient_norms if updates is not None else None
        if updates is None or weights is None or gradients is None:
            return Quiet.UNMEASURED
        return self._judge_still(sample, updates, weights, gradients)

    def _judge_empty(self, sample: Sample, without: float) -> Verdict | Quiet:
        self._empty += 1
        if self._empty < self.thresholds.looks:
            return Quiet.UNMEASURED
        summary = (
            f"Backward runs, but none of the optimizer's {without:.0f} tensors has had a gradient in the"
            f" {self._empty} steps up to"
            f" {sample.number}: it does not hold the tensors that are trained."
        )
        return Verdict(self._empty, self.thresholds.looks, summary, first_step=max(1, sample.number - self._empty + 1))

    def _judge_still(
        self, sample: Sample, updates: array[float], weights: array[float], gradients: array[float]
    ) -> Verdict | Quiet:
        if sample.names.version != self._table_version:
            self._table_version, self._matrices, self._still = sample.names.version, matrices(sample.names), {}
        size = min(len(updates), len(weights), len(gradients))
        relative = {
            i: gradients[i] / weights[i] for i in self._matrices if i < size and weights[i] > 0.0 and gradients[i] > 0.0
        }
        if not relative:
            return Quiet.UNMEASURED
        usual = _COMPARABLE_RATIO * median(relative.values())
        still = {i: self._still.get(i, 0) + 1 for i, ratio in relative.items() if updates[i] == 0.0 and ratio >= usual}
        if len(still) == len(relative) and not self._has_gradient(sample):
            still = {}
        self._still = still
        looks = max(still.values(), default=0)
        if looks < self.thresholds.looks:
            return Quiet.FINE
        stuck = [i for i, seen in still.items() if seen >= self.thresholds.looks]
        layer = sample.names.name(stuck[0])
        others = f" and {len(stuck) - 1} other matrices" if len(stuck) > 1 else ""
        summary = (
            f"{layer}{others} did not change in {looks} steps that were looked at, up to step {sample.number},"
            " despite a gradient."
        )
        return Verdict(looks, self.thresholds.looks, summary, layer)

    def _has_gradient(self, sample: Sample) -> bool:
        """The gradient is still of the size that it had at first."""
        norm = sample.value("grad_norm")
        return norm is not None and bool(self._first_norms) and norm >= _COMPARABLE_RATIO * median(self._first_norms)


def _rates_above_zero(sample: Sample) -> bool:
    rates = [rate for groups in sample.step.groups.values() for rate, _ in groups]
    return bool(rates) and all(rate > 0.0 for rate in rates)
