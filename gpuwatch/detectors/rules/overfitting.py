"""The validation loss rises while the training loss goes on falling.

## What it means

The model learns its training set by heart. What it gains there it loses on everything else, and each further step makes it
worse.

## The test

Validation values are read from the scalars that the job logs (`SummaryWriter.add_scalar`, `gpuwatch.log`): tags with `val`,
`valid`, `validation`, `eval`, `dev` or `test` in them and a loss, error or perplexity, for instance `loss/val`, `val_loss`,
`Loss/valid`. Each new value of a tag is an evaluation. After `evaluations` of them it is judged (Prechelt's GL and UP):

* the last 3 validation losses all lie more than `ratio` above the best one so far, and do not fall again, **and**
* the median training loss since the evaluation before is more than `ratio` below what it was at that best one.

Once found it stays until a validation loss comes back within `ratio` of the best one.

Where only an accuracy or score is logged (`Accuracy/val`, `val_acc`, `f1`, `auc` ...), its shortfall from 1 takes the place
of the loss, or where it is above 1 its negative share of the best one.

## What to do

1. Keep the checkpoint of the best evaluation (`first_step`), and stop early.
2. Regularise: weight decay, dropout, augmentation, label smoothing; a smaller model; more data.
3. See that training and validation data come from the same source and go through the same transforms.

## When it is wrong

With very few validation samples its loss wanders by itself. A cross-entropy may rise while the accuracy still improves,
because the few mistakes become more confident: look at the score you care about.
"""

from __future__ import annotations

import re
from collections import deque
from itertools import islice
from statistics import median
from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.rule import Positive, Quiet, Rule, Steps, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample
from gpuwatch.state.records import Scalar

_VALIDATION = re.compile(r"(?:^|[^a-z])(?:val|valid|validation|eval|evaluation|dev|test|holdout)(?:[^a-z]|$)", re.IGNORECASE)
_LOSS = re.compile(r"loss|nll|perplexity|ppl|(?:^|[^a-z])(?:error|err|mse|rmse|mae|ce)(?:[^a-z]|$)", re.IGNORECASE)
_SCORE = re.compile(r"acc|(?:^|[^a-z])(?:f1|auc|auroc|score|map|bleu|dice|iou|miou|r2)(?:[^a-z]|$)", re.IGNORECASE)
_LAST = 3
#: Training losses that are looked at for one evaluation, at most: the last ones before it.
_TRAINING_STEPS = 200
_KEPT_STEPS = 4096
_MAX_TAGS = 500
_MAX_WAITING = 1000


class Limits(Thresholds, frozen=True):
    ratio: Annotated[Positive, Meta(description="rise of the validation loss, and fall of the training loss, as a share")] = 0.1
    evaluations: Annotated[Steps, Meta(description="evaluations before anything is judged")] = 5


class _Evaluations:
    """The values of one validation tag."""

    def __init__(self, kind: str) -> None:
        self.kind = kind  # "loss", "score", or "" for a tag that is neither
        self.count = 0
        self.best = 0.0
        self.best_step = 0
        self.best_training = 0.0
        self.last: deque[float] = deque(maxlen=_LAST)
        self.previous_ns = 0
        self.over = False  # found, and not come back since: one that wavers while it rises is one finding

    def add(self, value: float, step: int, training: float) -> None:
        loss = value if self.kind == "loss" else 1.0 - value if value <= 1.0 else 1.0 / value
        self.count += 1
        self.last.append(loss)
        if self.count == 1 or loss < self.best:
            self.best, self.best_step, self.best_training = loss, step, training


class Overfitting(Rule[Limits]):
    name = "overfitting"
    severity = "warning"
    statistic = "validation loss over its best (ratio)"
    action = "Keep the checkpoint from first_step and stop; regularise (weight decay, dropout, augmentation) or add data."
    thresholds_type = Limits
    quiet_steps = 2  # evaluations

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._tags: dict[str, _Evaluations] = {}
        self._waiting: deque[Scalar] = deque(maxlen=_MAX_WAITING)  # logged after the last step that was judged
        self._losses: deque[tuple[int, int, float]] = deque(maxlen=_KEPT_STEPS)  # CLOCK_MONOTONIC ns, step, training loss

    def judge(self, sample: Sample) -> Verdict | Quiet:
        loss = sample.value("loss")
        if loss is not None and sample.applied:
            self._losses.append((sample.step.monotonic_ns, sample.number, loss))
        judgement: Verdict | Quiet = Quiet.UNMEASURED
        # On a busy machine scalars overtake the steps that they were logged after: they wait for them.
        self._waiting.extend(sample.logged)
        while self._waiting and self._waiting[0].monotonic_ns <= sample.step.monotonic_ns:
            found = self._take(sample, self._waiting.popleft())
            if isinstance(found, Verdict) or judgement is Quiet.UNMEASURED:
                judgement = found
        return judgement

    def _take(self, sample: Sample, scalar: Scalar) -> Verdict | Quiet:
        seen = self._tags.get(scalar.tag)
        if seen is None:
            if len(self._tags) >= _MAX_TAGS:
                return Quiet.UNMEASURED
            seen = self._tags[scalar.tag] = _Evaluations(_kind(scalar.tag))
        if not seen.kind or not abs(scalar.value) < 1e30:
            return Quiet.UNMEASURED
        if seen.kind == "score" and any(other.kind == "loss" for other in self._tags.values()):
            return Quiet.UNMEASURED
        # Scalars come by another way than steps, and later: the clock tells which losses belong before this one.
        before = list(islice(((n, x) for ns, n, x in reversed(self._losses) if ns <= scalar.monotonic_ns), _TRAINING_STEPS))
        since = sum(ns > seen.previous_ns for ns, _, _ in islice(reversed(self._losses), _TRAINING_STEPS)) or len(before)
        seen.previous_ns = scalar.monotonic_ns
        if not before:
            return Quiet.UNMEASURED
        training = median(x for _, x in before[:since])
        seen.add(scalar.value, before[0][0], training)
        return self._verdict(sample, scalar.tag, seen, training)

    def _verdict(self, sample: Sample, tag: str, seen: _Evaluations, training: float) -> Verdict | Quiet:
        limit = self.thresholds.ratio
        if seen.count < self.thresholds.evaluations or seen.best <= 0.0 or len(seen.last) < _LAST:
            return Quiet.FINE
        if min(seen.last) <= (1.0 + limit) * seen.best:
            seen.over = False
            return Quiet.FINE
        if not seen.over and (seen.last[-1] < seen.last[0] or training >= (1.0 - limit) * seen.best_training):
            return Quiet.FINE
        seen.over = True
        ratio = seen.last[-1] / seen.best
        comparison = "further from 1" if seen.kind == "score" else "higher"
        went = "fell" if training < seen.best_training else "went"
        summary = (
            f"{tag} is {comparison} by {ratio - 1.0:.0%} than at step {seen.best_step}, while the training loss {went}"
            f" from {seen.best_training:.4g} to {training:.4g} (step {sample.number})."
        )
        return Verdict(ratio, 1.0 + limit, summary, first_step=max(1, seen.best_step))


def _kind(tag: str) -> str:
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", tag)
    if not _VALIDATION.search(name):
        return ""
    return "loss" if _LOSS.search(name) else "score" if _SCORE.search(name) else ""
