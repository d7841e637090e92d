"""Every rule that there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gpuwatch.detectors.rule import AnyRule, Thresholds
from gpuwatch.detectors.rules.adam_second_moment import AdamSecondMoment
from gpuwatch.detectors.rules.amp_no_speedup import AmpNoSpeedup
from gpuwatch.detectors.rules.amp_skip_rate import AmpSkipRate
from gpuwatch.detectors.rules.amp_underflow import AmpUnderflow
from gpuwatch.detectors.rules.amp_unused import AmpUnused
from gpuwatch.detectors.rules.data_starvation import DataStarvation
from gpuwatch.detectors.rules.dead_layer import DeadLayer
from gpuwatch.detectors.rules.eval_mode_training import EvalModeTraining
from gpuwatch.detectors.rules.exploding_gradient import ExplodingGradient
from gpuwatch.detectors.rules.exporter_paused import ExporterPaused
from gpuwatch.detectors.rules.gpu_ecc import GpuEcc
from gpuwatch.detectors.rules.gpu_idle import GpuIdle
from gpuwatch.detectors.rules.gpu_lost import GpuLost
from gpuwatch.detectors.rules.gpu_memory_headroom import GpuMemoryHeadroom
from gpuwatch.detectors.rules.gpu_row_remap import GpuRowRemap
from gpuwatch.detectors.rules.gpu_throttled import GpuThrottled
from gpuwatch.detectors.rules.gpu_xid import GpuXid
from gpuwatch.detectors.rules.gradients_not_zeroed import GradientsNotZeroed
from gpuwatch.detectors.rules.hook_overhead import HookOverhead
from gpuwatch.detectors.rules.loss_diverging import LossDiverging
from gpuwatch.detectors.rules.loss_plateau import LossPlateau
from gpuwatch.detectors.rules.loss_scale_collapse import LossScaleCollapse
from gpuwatch.detectors.rules.loss_spike import LossSpike
from gpuwatch.detectors.rules.memory_fragmentation import MemoryFragmentation
from gpuwatch.detectors.rules.memory_leak import MemoryLeak
from gpuwatch.detectors.rules.no_weight_decay import NoWeightDecay
from gpuwatch.detectors.rules.nonfinite_gradient import NonfiniteGradient
from gpuwatch.detectors.rules.nonfinite_loss import NonfiniteLoss
from gpuwatch.detectors.rules.out_of_memory import OutOfMemory
from gpuwatch.detectors.rules.overfitting import Overfitting
from gpuwatch.detectors.rules.parameters_not_updated import ParametersNotUpdated
from gpuwatch.detectors.rules.records_overwritten import RecordsOverwritten
from gpuwatch.detectors.rules.replica_divergence import ReplicaDivergence
from gpuwatch.detectors.rules.sampler_stuck import SamplerStuck
from gpuwatch.detectors.rules.spin_wait import SpinWait
from gpuwatch.detectors.rules.stalled import Stalled
from gpuwatch.detectors.rules.step_time_regression import StepTimeRegression
from gpuwatch.detectors.rules.straggler import Straggler
from gpuwatch.detectors.rules.train_mode_validation import TrainModeValidation
from gpuwatch.detectors.rules.unscaled_clipping import UnscaledClipping
from gpuwatch.detectors.rules.unused_parameters import UnusedParameters
from gpuwatch.detectors.rules.update_ratio_high import UpdateRatioHigh
from gpuwatch.detectors.rules.update_ratio_low import UpdateRatioLow
from gpuwatch.detectors.rules.vanishing_gradient import VanishingGradient

RULES: tuple[type[AnyRule[Any]], ...] = (
    NonfiniteLoss,
    NonfiniteGradient,
    ExplodingGradient,
    VanishingGradient,
    DeadLayer,
    LossSpike,
    LossDiverging,
    LossPlateau,
    UpdateRatioHigh,
    UpdateRatioLow,
    AdamSecondMoment,
    Overfitting,
    LossScaleCollapse,
    AmpSkipRate,
    AmpUnderflow,
    UnscaledClipping,
    AmpNoSpeedup,
    AmpUnused,
    GradientsNotZeroed,
    EvalModeTraining,
    TrainModeValidation,
    UnusedParameters,
    ParametersNotUpdated,
    ReplicaDivergence,
    NoWeightDecay,
    DataStarvation,
    GpuIdle,
    StepTimeRegression,
    Straggler,
    Stalled,
    SpinWait,
    GpuMemoryHeadroom,
    MemoryLeak,
    MemoryFragmentation,
    OutOfMemory,
    GpuLost,
    GpuXid,
    GpuEcc,
    GpuThrottled,
    GpuRowRemap,
    HookOverhead,
    RecordsOverwritten,
    ExporterPaused,
    SamplerStuck,
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
