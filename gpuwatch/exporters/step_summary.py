"""One training step as TensorBoard values, under the tags that the contract names."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from gpuwatch.exporters.summaries import add_log2_histogram, add_scalar
from gpuwatch.state import layers

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

    from gpuwatch.state.names import NameTable
    from gpuwatch.state.steps import Step

#: What a step says of the whole model: field of the step -> tag.
_SCALARS = {
    "loss": "train/loss",
    "grad_norm": "grad/norm",
    "grad_norm_clipped": "grad/norm_clipped",
    "grad_absmax": "grad/absmax",
    "weight_norm": "weight/norm",
    "update_ratio": "update/ratio",
    "loss_scale": "amp/loss_scale",
    "grad_underflow_ratio": "amp/underflow_ratio",
    "step_seconds": "phase/step_seconds",
    "data_seconds": "phase/data_seconds",
    "forward_seconds": "phase/forward_seconds",
    "backward_seconds": "phase/backward_seconds",
    "optimizer_seconds": "phase/optimizer_seconds",
    "other_seconds": "phase/other_seconds",
}
#: Statistic of a layer's gradient -> the last part of its tag. `mean` is of magnitudes: a mean of signs says little.
_GRADIENT = {"norm": "norm", "absmax": "absmax", "mean_abs": "mean", "zero_ratio": "zero_ratio"}

_STEP_TAG = re.compile(
    r"train/loss|train/loss/.*|train/lr/.*|grad/(?:norm|norm_clipped|absmax)|grad/.*/(?:norm|absmax|mean|zero_ratio)"
    r"|weight/norm|weight/.*/norm|update/ratio|update/.*/ratio|amp/(?:loss_scale|skipped|underflow_ratio)"
    r"|phase/\w+_seconds|gpu/[\d:]+/(?:memory_used|memory_peak|utilization|power)",
    re.ASCII | re.DOTALL,
)
_OTHER_TAG = re.compile(r"finding/.*|_hparams_/.*|custom_scalars__config__", re.ASCII | re.DOTALL)
_HISTOGRAM_TAG = re.compile(r"(?:grad|weight)/.*", re.ASCII | re.DOTALL)


def is_step_tag(tag: str) -> bool:
    """Whether this is the tag of a scalar that we write from the records of steps."""
    return _STEP_TAG.fullmatch(tag) is not None


def is_ours(tag: str, kind: str) -> bool:
    """Whether a tag is ours for data of this kind. Two sources on one tag would mix two step axes."""
    if kind == "histogram" and _HISTOGRAM_TAG.fullmatch(tag):
        return True
    return is_step_tag(tag) or _OTHER_TAG.fullmatch(tag) is not None


def points(step: Step, groups: NameTable, optimizers: NameTable) -> list[tuple[str, float]]:
    """(tag, value) of what a step says of the whole model."""
    values = step.values
    found = [(tag, values[field]) for field, tag in _SCALARS.items() if field in values]
    if "loss_scale" in values:
        found.append(("amp/skipped", values.get("skipped", 0.0)))
    if len(step.losses) > 1:
        found += [(f"train/loss/{_name(optimizers, index, 'optimizer')}", step.losses[index]) for index in sorted(step.losses)]
    number = 0  # groups are numbered through all optimizers
    for optimizer in sorted(step.groups):
        for learning_rate, _ in step.groups[optimizer]:
            if not math.isnan(learning_rate):
                found.append((f"train/lr/{_name(groups, number, 'group')}", learning_rate))
            number += 1
    return found


def add_layers(summary: Summary, step: Step, tensors: NameTable) -> None:
    """What a step says of each layer (parameter tensor). Those without a name are left out: under one tag they would mix."""
    known = len(tensors.names)
    for index, measured in layers.statistics(step.tensors, "gradient"):
        if index >= known:
            continue
        for column, last in _GRADIENT.items():
            if column in measured:
                add_scalar(summary, f"grad/{tensors.names[index]}/{last}", measured[column])
    weights = {index: measured.get("norm") for index, measured in layers.statistics(step.tensors, "weight")}
    for index, norm in weights.items():
        if norm is not None and index < known:
            add_scalar(summary, f"weight/{tensors.names[index]}/norm", norm)
    for index, measured in layers.statistics(step.tensors, "update"):
        update, weight = measured.get("norm"), weights.get(index)
        if update is not None and weight and index < known:
            add_scalar(summary, f"update/{tensors.names[index]}/ratio", update / weight)


def add_histograms(summary: Summary, step: Step, tensors: NameTable, *, describe: bool) -> None:
    """The magnitudes of each layer's gradient and weight entries."""
    for rows in step.histograms:
        prefix = {"gradient": "grad", "weight": "weight"}.get(rows.family)
        if prefix is None:
            continue
        for index, counts in layers.buckets(rows):
            if index >= len(tensors.names):
                break
            add_log2_histogram(summary, f"{prefix}/{tensors.names[index]}", counts, rows.first_exponent, describe=describe)


def _name(table: NameTable, index: int, kind: str) -> str:
    return table.names[index] if index < len(table.names) else f"{kind}{index}"
