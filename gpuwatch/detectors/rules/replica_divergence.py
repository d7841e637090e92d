"""Ranks that should hold the same weights do not.

## What it means

Data-parallel ranks begin with the same weights and apply the same averaged gradients, so their weights stay equal, bit by
bit. When they differ, gradients are not averaged (the model is not wrapped in DistributedDataParallel, or the loop calls the
inner module), something changes the weights on one rank alone, or a GPU computes wrongly. From then on the ranks train
different models, and the checkpoint of rank 0 is only one of them.

## The test

For the ranks of one run on this node whose optimizers hold tensors of the same sizes in the same order, the norms of all
weights are compared at the steps at which both measured them. Diverged are those that differ by more than `ratio`, at the
last 3 such steps, when the ranks are known to be replicas: their norms agreed at an earlier step, or their gradient norms
agree now. Sharded models (FSDP, ZeRO-3) are left out: their norms are of one part each. It is judged on all ranks but the
lowest, against that one.

## What to do

1. See that the wrapped model is the one that is called, and that `no_sync()` does not cover the last micro-batch.
2. Look for what is done on one rank alone: `if rank == 0` around an update, a seed that differs, a checkpoint that one loads.
3. If it began in mid-run without such a cause, suspect the GPU: look for ECC errors, and run the vendor's diagnostics.

## When it is wrong

Local SGD and federated averaging let ranks drift on purpose between two averages. Ranks of a tensor-parallel model that hold
parts of equal sizes never agree, and are not judged.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.moment import Moment, Replica
from gpuwatch.detectors.rule import MomentRule, Positive, Quiet, Thresholds, Verdict

_STEPS = 3
#: Gradients that agree this closely were averaged: those of different batches do not.
_SAME_GRADIENT_RATIO = 1e-5


class Limits(Thresholds, frozen=True):
    ratio: Annotated[Positive, Meta(description="difference of the weight norms, over the larger one")] = 1e-4


class ReplicaDivergence(MomentRule[Limits]):
    name = "replica_divergence"
    severity = "critical"
    statistic = "difference of two ranks' weight norms over the larger one (ratio)"
    action = (
        "See that the wrapped model is the one that is called and that no rank changes weights alone; then suspect the GPU."
    )
    thresholds_type = Limits

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._agreed = False
        self._judged_step = 0

    def judge(self, moment: Moment) -> Verdict | Quiet:
        mine = next((replica for replica in moment.replicas if replica.rank == moment.rank), None)
        first = moment.replicas[0] if moment.replicas else None
        if mine is None or first is None or first is mine or mine.sharded or mine.layout != first.layout:
            return Quiet.UNMEASURED
        common = sorted(mine.weight_norms.keys() & first.weight_norms.keys())
        if not common or common[-1] <= self._judged_step:
            return Quiet.UNMEASURED
        self._judged_step = common[-1]
        apart = {step: _difference(mine.weight_norms[step], first.weight_norms[step]) for step in common}
        limit = self.thresholds.ratio
        self._agreed = self._agreed or any(difference <= 0.01 * limit for difference in apart.values())
        if len(common) < _STEPS or any(not apart[step] > limit for step in common[-_STEPS:]):
            return Quiet.FINE
        if not self._agreed and not _same_gradients(mine, first):
            return Quiet.FINE
        first_step = next(step for step in common if apart[step] > limit)
        step = common[-1]
        summary = (
            f"The weights of rank {mine.rank} are not those of rank {first.rank}: their norms are"
            f" {mine.weight_norms[step]:.6g} and"
            f" {first.weight_norms[step]:.6g} at step {step}, and have differed since step {first_step}."
        )
        return Verdict(apart[step], limit, summary, first_step=first_step)


def _difference(a: float, b: float) -> float:
    return abs(a - b) / max(abs(a), abs(b), 1e-30)


def _same_gradients(a: Replica, b: Replica) -> bool:
    common = sorted(a.grad_norms.keys() & b.grad_norms.keys())[-_STEPS:]
    return len(common) == _STEPS and all(
        _difference(a.grad_norms[step], b.grad_norms[step]) <= _SAME_GRADIENT_RATIO for step in common
    )
