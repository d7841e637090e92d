"""The loss jumped far above its recent level.

## What it means

One step's loss is out of all proportion to those before: a bad batch, a learning rate that is too high for this point of the
run, or the first sign of divergence. Large language model runs have been rewound by hundreds of batches for such spikes.

## The test

The loss lies more than `sigmas` robust standard deviations above the median of the last 128 applied steps, its logarithm
more than `log_sigmas` above its own, and the loss more than `ratio` times the median; and the rise is more than 1 % of what
the loss was at the start, to more than 5 % of it (a loss that has come down to nothing jumps about for no reason). Standard
deviations are 1.4826 times the MAD over 128 steps, at least 2 % of the median. A run whose loss has a long tail has shown
it before: `log_sigmas` is at least 1.5 times the largest excursion of the last 1,000 steps or so that was not itself a
spike. Nothing is judged in the first 50 steps, nor in the 50 after the optimizer was set up anew or its schedule restarted.
It needs a positive loss, and is off for several optimizers with losses of their own (GANs), whose losses are no measure of
progress.

## What to do

1. Compare with `exploding_gradient` at the same step: with it, clip gradients or lower the learning rate; a longer warm-up
   helps when it happens early.
2. Alone, look at the batch (`data` order is reproducible with a seeded sampler): corrupt or mislabelled samples.
3. If the loss does not come back (`loss_diverging`), go back to a checkpoint and skip the batches around this step.

## When it is wrong

Losses with rare, expensive samples (detection without any object, reinforcement learning) jump by nature. A change of the
data set, or a loss term that is switched on, is a step up and not a spike. Negative losses and GANs are not judged.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gpuwatch.detectors.rule import Positive, Quiet, Rule, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample


class Limits(Thresholds, frozen=True):
    sigmas: Annotated[Positive, Meta(description="robust standard deviations above the median of 128 steps")] = 8.0
    log_sigmas: Annotated[Positive, Meta(description="the same of log(loss): small batches make the loss skewed")] = 5.0
    ratio: Annotated[Positive, Meta(description="times that median")] = 1.5


#: How fast an excursion is forgotten: to one half in 1,000 steps.
_FORGET = 0.5**0.001
_BEYOND_KNOWN = 1.5


class LossSpike(Rule[Limits]):
    name = "loss_spike"
    severity = "warning"
    statistic = "loss over the median of the last 128 steps (ratio)"
    action = "Look at this step's batch; with exploding_gradient beside it, clip gradients or lower the learning rate."
    thresholds_type = Limits

    def __init__(self, thresholds: Limits) -> None:
        super().__init__(thresholds)
        self._known_sigmas = 0.0  # of log(loss): the largest excursion that was no spike

    def judge(self, sample: Sample) -> Verdict | Quiet:
        rise = sample.rise
        if rise is None:
            return Quiet.UNMEASURED
        limits = self.thresholds
        log_sigmas = max(limits.log_sigmas, _BEYOND_KNOWN * self._known_sigmas)
        far = rise.sigmas > limits.sigmas and rise.log_sigmas > log_sigmas
        if not (far and rise.ratio > limits.ratio and rise.matters):
            self._known_sigmas = max(self._known_sigmas * _FORGET, rise.log_sigmas)
            return Quiet.FINE
        summary = (
            f"The loss jumped to {rise.loss:.4g} at step {sample.number}, {rise.ratio:.3g} times its recent median"
            f" of {rise.median:.4g}{sample.cause}."
        )
        return Verdict(rise.ratio, limits.ratio, summary)
