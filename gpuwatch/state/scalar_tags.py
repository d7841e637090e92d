"""What a logged scalar measures, by the words of its tag: `Accuracy/val`, `train_loss`, `eval/acc1`, `metrics.valid.loss`.

People's tags follow no standard; their words do. A tag that names no part of the data (`accuracy`) is read as no part.
"""

from __future__ import annotations

import re
from typing import NamedTuple

TRAIN, VALIDATION = "train", "validation"
_PARTS = {
    **dict.fromkeys(("train", "training", "trn"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "eval", "evaluation", "test", "dev", "holdout"), VALIDATION),
}
_MEASURES = {
    **dict.fromkeys(("acc", "accuracy", "acc1", "top1"), "accuracy"),
    **dict.fromkeys(("loss", "nll", "ce"), "loss"),
}
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+\d*|\d+")


class Meaning(NamedTuple):
    """`part`: TRAIN or VALIDATION; `measure`: accuracy or loss."""

    part: str
    measure: str


def meaning(tag: str) -> Meaning | None:
    """What the tag's words say, or None when they do not name both a part of the data and a measure, or name two."""
    words = [word.lower() for word in _WORDS.findall(tag)]
    parts = {_PARTS[word] for word in words if word in _PARTS}
    measures = {_MEASURES[word] for word in words if word in _MEASURES}
    return Meaning(parts.pop(), measures.pop()) if len(parts) == 1 and len(measures) == 1 else None
