"""The optimizer steps, and weights that should change do not.

## What it means

Either the optimizer holds other tensors than the ones that are trained (it was made before the model was moved, wrapped,
re-created or loaded), so that none of its tensors ever gets a gradient; or there is none at all, since `loss.backward()` is
missing or everything is frozen; or weights get a gradient and stay the same, bit by bit: updates too small for the number
format (bfloat16 weights have 8 bits), a learning rate of zero for one group, or code that writes the old values back.

## The test

Any of these is enough, in `looks` looks running where no other number is given.

* The loop computed a loss and called backward, and not one of the optimizer's trainable tensors had a gradient.
* `bare_steps` applied steps running of all optimizers had no gradient at all: no backward pass came before them, or every
  tensor is frozen (`requires_grad=False`). The summary says which. Steps with a closure are not counted, and neither are
  those in which the weights change all the same.
* Some of the optimizer's trainable tensors have no gradient, while tensors of the same model have one and are in no optimizer
  (looked for at steps 4, 8, 16 ...): the optimizer holds what was replaced.
* The learning rate of every group has been 0 for `zero_rate_steps` applied steps; this one is a warning.
* A weight matrix has not changed at all in an applied step with a learning rate above zero in every group, although its
  gradient, over its weights, is at least a hundredth of the median of all matrices. When no matrix changes, the gradient
  must also be at least a hundredth of what it was in the first 20 steps: a run that has converged stands still by right.

Updates are measured at some steps only (see the overhead budget), so the last way may take more steps.

## What to do

1. See that each step has its `loss.backward()`, on the loss and not on a detached copy, and that what is to be trained has
   `requires_grad=True`.
2. Make the optimizer after the model is in its final form (`.to(device)`, wrapped, adapters added), from its `parameters()`.
3. Keep weights in float32 and use autocast, when they are bfloat16 or float16.
4. Print the learning rate of every group (`train/lr/GROUP` in TensorBoard).

## When it is wrong

A loop that alternates several optimizers over the same tensors, or averages weights back (lookahead), may undo a step between
two looks. Steps of a closure that is called several times are not judged. An optimizer that takes its gradients from elsewhere
than `parameter.grad` is told until its updates are measured, when these have been thinned (see the overhead budget).
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.bare_steps import BareSteps
from gpuwatch.detectors.matrices import matrices
from gpuwatch.detectors.rule import Quiet, Rule, Steps, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample
from gpuwatch.state.records import Event

_COMPARABLE_RATIO = 0.01
_FIRST_NORMS = 20


class Limits(Thresholds, frozen=True):
    looks: Annotated[Steps, Meta(description="looks running")] = 5
    bare_steps: Annotated[Steps, Meta(description="applied steps running without any gradient")] = 15
    zero_rate_steps: Annotated[Steps, Meta(description="steps running at a learning rate of 0")] = 20


class ParametersNotUpdated(Rule[Limits]):
    name = "parameters_not_updated"
    severity = "critical"
    statistic = "looks running at which nothing changed"
    action = (
        "See that loss.backward() runs before the step; make the optimizer from the final model's parameters, not frozen;"
        " keep weights in float32; check each group's rate."
    )
    thresholds_type = Limits
    quiet_steps = 3

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._empty = 0  # steps running without any gradient
        self._bare = BareSteps()
        self._stray: Event | None = None  # the last news of tensors that are in no optimizer
        self._stale = 0  # steps running with tensors that lack a gradient
        self._zero_rate = 0  # applied steps running at a learning rate of 0
        self._still: dict[int, int] = {}  # matrix -> looks running
        self._first_norms: deque[float] = deque(maxlen=_FIRST_NORMS)
        self._table_version = -1
        self._matrices: list[int] = []

    def judge(self, sample: Sample) -> Verdict | Quiet:
        norm = sample.value("grad_norm")
        if norm is not None and len(self._first_norms) < _FIRST_NORMS:
            self._first_norms.append(norm)
        without = sample.value("tensors_without_gradient")
        bare = self._bare.observe(sample)
        if norm is None and "grad_norm" not in sample.values and (without or 0.0) > 0.0 and sample.value("micro_batches"):
            return self._judge_empty(sample, without or 0.0)
        self._empty = 0
        if bare >= self.thresholds.bare_steps:
            return self._bare_verdict(sample)
        found = self._judge_stale(sample, without or 0.0)
        if found is not None or not sample.applied or sample.value("closure_calls"):
            return found or Quiet.UNMEASURED
        rates = [rate for groups in sample.step.groups.values() for rate, _ in groups]
        self._zero_rate = self._zero_rate + 1 if rates and not any(rates) else 0
        if self._zero_rate >= self.thresholds.zero_rate_steps:
            return self._zero_rate_verdict(sample)
        return self._judge_still(sample) if rates and all(rate > 0.0 for rate in rates) else Quiet.UNMEASURED

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

    def _bare_verdict(self, sample: Sample) -> Verdict:
        bare = self._bare
        return Verdict(bare.count, self.thresholds.bare_steps, bare.sentence(sample), first_step=bare.first_step)

    def _judge_stale(self, sample: Sample, without: float) -> Verdict | None:
        self._stray = stray = next(iter(sample.news("untrained_parameters")[-1:]), self._stray)
        self._stale = self._stale + 1 if without else 0
        if stray is None or self._stale < self.thresholds.looks:
            return None
        summary = (
            f"{stray.value:.0f} tensors of the model, {stray.text} first of all, get gradients and are in no optimizer, while"
            f" {without:.0f} of the optimizer's tensors get none (step {sample.number}): it was made before they were replaced."
        )
        return Verdict(
            self._stale, self.thresholds.looks, summary, stray.text, first_step=max(1, sample.number - self._stale + 1)
        )

    def _zero_rate_verdict(self, sample: Sample) -> Verdict:
        count = self._zero_rate
        summary = f"The learning rate of every group has been 0 for {count} steps up to step {sample.number}."
        first_step = max(1, sample.number - count + 1)
        return Verdict(count, self.thresholds.zero_rate_steps, summary, severity="warning", first_step=first_step)

    def _judge_still(self, sample: Sample) -> Verdict | Quiet:
        updates, weights = sample.column("update", "norm"), sample.column("weight", "norm")
        gradients = sample.gradient_norms if updates is not None else None
        if updates is None or weights is None or gradients is None:
            return Quiet.UNMEASURED
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
