"""Gradient accumulation: a larger batch than memory holds, and fewer all-reduces and optimizer steps for each sample."""

from __future__ import annotations

import statistics

from gpuwatch.advice.station import ESTIMATE, Gain, Station, Subject, head_room, phase_shares

_WORTH_OPTIMIZER_RATIO = 0.15
#: Gradient norms of successive steps that scatter this much say that the batch is small for the problem.
_NOISY_RATIO = 0.5


def accumulation(subject: Subject) -> Station:
    """Whether several micro-batches should share an update."""
    past = subject.past
    batches = [value for value in past.values("micro_batches") if value > 0.0]
    usual = statistics.median(batches) if batches else None
    evidence = []
    if usual is not None:
        evidence.append(f"{usual:g} micro-batch{'' if usual == 1 else 'es'} an update.")
    if usual is not None and usual > 1:
        return Station("gradient accumulation", "done", tuple(evidence))
    if room := head_room(past):
        evidence.append(room)
    share = phase_shares(past).get("optimizer", 0.0)
    norms = [value for value in past.values("grad_norm") if 0.0 < value < float("inf")][-200:]
    scatter = statistics.pstdev(norms) / statistics.fmean(norms) if len(norms) > 20 else None
    if scatter is not None:
        evidence.append(f"The gradient norm scatters by {scatter:.0%} from step to step at the end.")
    if share > _WORTH_OPTIMIZER_RATIO:
        evidence.append(f"The optimizer takes {share:.0%} of the step.")
        gain = Gain(f"at most {1 / (1 - 0.75 * share):.2f}x with four micro-batches an update", ESTIMATE)
        action = "Step every fourth backward, dividing the loss by four; raise the learning rate with the batch, carefully."
        return Station("gradient accumulation", "next", tuple(evidence), action, gain)
    if scatter is not None and scatter > _NOISY_RATIO:
        action = "If a larger batch does not fit into memory, accumulate: it steadies the gradient, and costs no memory."
        return Station("gradient accumulation", "later", tuple(evidence), action)
    return Station("gradient accumulation", "idle" if evidence else "unknown", tuple(evidence))
