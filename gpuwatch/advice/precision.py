"""Mixed precision: whether the run uses it, whether it pays, and whether fp16's range suffices."""

from __future__ import annotations

import statistics

from gpuwatch.advice.station import ESTIMATE, MEASURED, Gain, Station, Subject, head_room, phase_shares

#: Share of gradient entries lost to fp16's range above which layers stop learning; as the amp_underflow rule has it.
_UNDERFLOW_RATIO = 0.05
_WORTH_RATIO = 1.05
#: Major compute capability.
_TENSOR_CORES_SINCE = 7
_HALF = ("float16", "bfloat16", "fp16", "bf16", "16-mixed", "bf16-mixed")


def mixed_precision(subject: Subject) -> Station:
    """Where the run stands with autocast and the loss scale."""
    measured, past = subject.measures, subject.past
    speedup = measured.amp_speedup_ratio
    evidence = [f"The forward pass runs in {measured.precision}."]
    if speedup is not None:
        low, high = past.facts.get("amp_speedup_low"), past.facts.get("amp_speedup_high")
        bounds = (low, high) if isinstance(low, float) and isinstance(high, float) else None
        spread = f" (95 %: {bounds[0]:.2f} to {bounds[1]:.2f})" if bounds else ""
        evidence.append(f"The AMP probe measured {speedup:.2f}x in this run{spread}.")
        in_use = any(half in measured.precision for half in _HALF)
        if bounds and bounds[0] <= 1.0 <= bounds[1] and not in_use:
            evidence.append("That is no difference that its steps could show.")
            more = "Measure with more steps: gpuwatch probe amp RUN --steps 300."
            return Station("mixed precision", "unknown", tuple(evidence), more)
    if any(half in measured.precision for half in _HALF):
        return _in_use(subject, evidence)
    if speedup is not None:
        measured_gain = Gain(f"{speedup:.2f}x", MEASURED)
        if speedup < _WORTH_RATIO:
            return Station("mixed precision", "idle", tuple(evidence), gain=measured_gain)
        return Station("mixed precision", "next", tuple(evidence), _ADVICE, measured_gain)
    shares = phase_shares(past)
    compute = shares.get("forward", 0.0) + shares.get("backward", 0.0)
    if compute:
        evidence.append(f"Forward and backward take {compute:.0%} of the step: what does not speed up limits the gain.")
    if not subject.on_gpu:
        evidence.append("On a CPU autocast pays only where it computes in bfloat16 itself (AMX, AVX512-BF16).")
        return Station("mixed precision", "unknown", tuple(evidence), _MEASURE)
    if room := head_room(past):
        evidence.append(room)
    capability = str(past.facts.get("device_compute_capability", ""))
    if capability.partition(".")[0].isdigit() and int(capability.partition(".")[0]) < _TENSOR_CORES_SINCE:
        evidence.append(
            f"A device of compute capability {capability} has no tensor cores: it would save memory and little time."
        )
    bound = f"at most {1 / (1 - compute / 2):.2f}x if forward and backward took half as long" if compute else ""
    gain = Gain(bound, ESTIMATE) if bound else None
    return Station("mixed precision", "next", tuple(evidence), f"{_ADVICE} {_MEASURE}", gain)


_ADVICE = "Wrap forward and loss in torch.autocast; with float16 also use torch.amp.GradScaler, with bfloat16 nothing else."
_MEASURE = "gpuwatch probe amp RUN measures it in the running job."


def _in_use(subject: Subject, evidence: list[str]) -> Station:
    past = subject.past
    lost = [value for value in past.values("grad_underflow_ratio") if value == value]  # noqa: PLR0124  # not NaN
    skipped = sum(1 for value in past.values("skipped") if value > 0.0)
    scales = past.values("loss_scale")
    if len(scales):
        evidence.append(f"Loss scale {scales[-1]:g} at the end, {skipped:,} of {len(past.steps):,} updates skipped.")
    if lost:
        evidence.append(f"fp16 would flush {statistics.median(lost):.2%} of the gradient entries to zero (median).")
        if statistics.median(lost) > _UNDERFLOW_RATIO:
            action = "Use bfloat16, which has float32's range, or let the loss scale grow (growth_interval, init_scale)."
            return Station("mixed precision", "next", tuple(evidence), action)
    return Station("mixed precision", "done", tuple(evidence))
