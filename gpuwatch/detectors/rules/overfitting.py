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

_VALIDATION = re.compile(r"(?:^|[^a-z])(?:val|valid|validation|eval|evaluation|dev|test|holdout)(?:[^a-z]|$)", re.IGNORECASE)
_LOSS = re.compile(r"loss|nll|perplexity|ppl|(?:^|[^a-z])(?:error|err|mse|rmse|mae|ce)(?:[^a-z]|$)", re.IGNORECASE)
_SCORE = re.compile(r"acc|(?:^|[^a-z])(?:f1|auc|auroc|score|map|bleu|dice|iou|miou|r2)(?:[^a-z]|$)", re.IGNORECASE)
_LAST = 3
#: Training losses that are looked at for one evaluation, at most: the last ones before it.
_TRAINING_STEPS = 200


class Limits(Thresholds, frozen=True):
    ratio: Annotated[Positive, Meta(description="rise of the validation loss, and fall of the training loss, as a share")] = 0.1
    evaluations: Annotated[Steps, Meta(description="evaluations before anything is judged")] = 5


class _Evaluations:
    """The values of one validation tag."""

    def __init__(self, *, score: bool) -> None:
        self.score = score
        self.seen_ns = 0
        self.count = 0
        self.best = 0.0
        self.best_step = 0
        self.best_training = 0.0
        self.last: deque[float] = deque(maxlen=_LAST)

    def add(self, value: float, step: int, training: float) -> None:
        loss = (1.0 - value if value <= 1.0 else 1.0 / value) if self.score else value
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
        self._tags_seen = 0
        self._tags: dict[str, _Evaluations] = {}
        self._losses: deque[float] = deque(maxlen=_TRAINING_STEPS)
        self._since = 0  # losses since the last evaluation

    def judge(self, sample: Sample) -> Verdict | Quiet:
        judgement: Verdict | Quiet = Quiet.UNMEASURED
        if sample.scalars:
            judgement = self._look(sample)
        loss = sample.value("loss")
        if loss is not None and sample.applied:
            self._losses.append(loss)
            self._since += 1
        return judgement

    def _look(self, sample: Sample) -> Verdict | Quiet:
        if len(sample.scalars) != self._tags_seen:
            self._tags_seen = len(sample.scalars)
            self._learn(list(sample.scalars))
        judgement: Verdict | Quiet = Quiet.UNMEASURED
        for tag, evaluations in self._tags.items():
            scalar = sample.scalars.get(tag)
            if scalar is None or scalar.monotonic_ns == evaluations.seen_ns or not self._losses:
                continue
            evaluations.seen_ns = scalar.monotonic_ns
            if not abs(scalar.value) < 1e30:
                continue
            recent = min(len(self._losses), max(self._since, 1))
            training = median(islice(self._losses, len(self._losses) - recent, None))
            evaluations.add(scalar.value, sample.number, training)
            self._since = 0
            found = self._verdict(sample, tag, evaluations, training)
            if judgement is Quiet.UNMEASURED or isinstance(found, Verdict):
                judgement = found
        return judgement

    def _learn(self, tags: list[str]) -> None:
        """Which tags are followed: validation losses, and scores where there is no such loss."""
        named = [re.sub(r"(?<=[a-z])(?=[A-Z])", "_", tag) for tag in tags]
        validations = [(tag, name) for tag, name in zip(tags, named, strict=True) if _VALIDATION.search(name)]
        losses = [tag for tag, name in validations if _LOSS.search(name)]
        scores = [tag for tag, name in validations if _SCORE.search(name) and not _LOSS.search(name)]
        for tag in losses or scores:
            self._tags.setdefault(tag, _Evaluations(score=tag not in losses))
        if losses:
            self._tags = {tag: known for tag, known in self._tags.items() if not known.score}

    def _verdict(self, sample: Sample, tag: str, seen: _Evaluations, training: float) -> Verdict | Quiet:
        limit = self.thresholds.ratio
        if seen.count < self.thresholds.evaluations or seen.best <= 0.0 or len(seen.last) < _LAST:
            return Quiet.FINE
        worse = min(seen.last) > (1.0 + limit) * seen.best and seen.last[-1] >= seen.last[0]
        if not worse or training >= (1.0 - limit) * seen.best_training:
            return Quiet.FINE
        ratio = seen.last[-1] / seen.best
        summary = (
            f"{tag} is {'further from 1' if seen.score else 'higher'} by {ratio - 1.0:.0%} than at step"
            f" {seen.best_step}, while the"
            f" training loss fell from {seen.best_training:.4g} to {training:.4g} (step {sample.number})."
        )
        return Verdict(ratio, 1.0 + limit, summary, first_step=max(1, seen.best_step))
