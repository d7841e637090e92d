"""Every rule that there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gpuwatch.detectors.rule import AnyRule, Thresholds
from gpuwatch.detectors.rules.amp_skip_rate import AmpSkipRate
from gpuwatch.detectors.rules.data_starvation import DataStarvation
from gpuwatch.detectors.rules.exploding_gradient import ExplodingGradient
from gpuwatch.detectors.rules.hook_overhead import HookOverhead
from gpuwatch.detectors.rules.loss_diverging import LossDiverging
from gpuwatch.detectors.rules.loss_scale_collapse import LossScaleCollapse
from gpuwatch.detectors.rules.loss_spike import LossSpike
from gpuwatch.detectors.rules.nonfinite_gradient import NonfiniteGradient
from gpuwatch.detectors.rules.nonfinite_loss import NonfiniteLoss
from gpuwatch.detectors.rules.records_overwritten import RecordsOverwritten
from gpuwatch.detectors.rules.unscaled_clipping import UnscaledClipping
from gpuwatch.detectors.rules.update_ratio_high import UpdateRatioHigh
from gpuwatch.detectors.rules.vanishing_gradient import VanishingGradient

RULES: tuple[type[AnyRule[Any]], ...] = (
    NonfiniteLoss,
    NonfiniteGradient,
    ExplodingGradient,
    VanishingGradient,
    LossSpike,
    LossDiverging,
    UpdateRatioHigh,
    LossScaleCollapse,
    AmpSkipRate,
    UnscaledClipping,
    DataStarvation,
    HookOverhead,
    RecordsOverwritten,
)
BY_NAME: dict[str, type[AnyRule[Any]]] = {rule.name: rule for rule in RULES}


def thresholds(rule: type[AnyRule[Any]], given: Mapping[str, bool | float | str]) -> Thresholds:
    """A rule's thresholds with what the configuration says. Raises ValueError with the path of what is wrong."""
    try:
        return msgspec.convert(dict(given), rule.thresholds_type)
    except msgspec.ValidationError as error:
        raise ValueError(f"rules.{rule.name}: {error}") from None


#: For the configuration: each rule's thresholds and their defaults.
DEFAULTS: dict[str, dict[str, bool | int | float | str]] = {
    rule.name: msgspec.to_builtins(rule.thresholds_type()) for rule in RULES
}
