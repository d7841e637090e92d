"""Mixed precision: whether the run uses it, whether it pays, and whether fp16's range suffices."""

from __future__ import annotations

import statistics

from gpuwatch.advice.station import ESTIMATE, MEASURED, Gain, Station, Subject, head_room, phase_shares
from gpuwatch.history.half_range import half_range, of_scale

#: Share of gradient entries lost to fp16's range above which layers stop learning; as the amp_underflow rule has it.
_UNDERFLOW_RATIO = 0.05
_WORTH_RATIO = 1.05
#: A bound of more than tenfold is none.
_SAYS_NOTHING_RATIO = 0.9
_NAMED_LAYERS = 4
#: Major compute capability.
_TENSOR_CORES_SINCE = 7
_HALF = ("float16", "bfloat16", "fp16", "bf16", "16-mixed", "bf16-mixed")


def mixed_precision(subject: Subject) -> Station:
    """Where the run stands with autocast and the loss scale."""
    measured, past = subject.measures, subject.past
    speedup = measured.amp_speedup_ratio
    evidence, bounds = [f"The forward pass runs in {measured.precision}."], None
    if speedup is not None:
        low, high = past.facts.get("amp_speedup_low"), past.facts.get("amp_speedup_high")
        bounds = (low, high) if isinstance(low, float) and isinstance(high, float) else None
        spread = f" (95 %: {bounds[0]:.2f} to {bounds[1]:.2f})" if bounds else ""
        evidence.append(f"The AMP probe measured {speedup:.2f}x in this run{spread}.")
        in_use = any(half in measured.precision for half in _HALF)
        if bounds and bounds[0] <= 1.0 <= bounds[1] and not in_use:
            evidence.append("That is no difference that its steps could show.")
            again = f"gpuwatch probe amp {subject.run} --steps 300."
            later = "Measure with more steps once it runs again: gpuwatch probe amp RUN --steps 300, RUN being its new name."
            more = later if subject.ended else f"Measure with more steps: {again}"
            return Station("mixed precision", "unknown", tuple(evidence), more)
    if refused := past.facts.get("amp_probe_failed"):
        evidence.append(f"The AMP probe was refused: {refused}.")
    evidence += _work(subject)
    if any(half in measured.precision for half in _HALF):
        if speedup and bounds and bounds[1] < 1.0:
            return Station("mixed precision", "next", tuple(evidence), _SLOWER, Gain(f"{1 / speedup:.2f}x", MEASURED))
        return _in_use(subject, evidence)
    if speedup is not None:
        measured_gain = Gain(f"{speedup:.2f}x", MEASURED)
        if speedup < _WORTH_RATIO:
            return Station("mixed precision", "idle", tuple(evidence), gain=measured_gain)
        return Station("mixed precision", "next", tuple(evidence), _ADVICE, measured_gain)
    return _unused(subject, evidence)


def _unused(subject: Subject, evidence: list[str]) -> Station:
    """In float32, and nobody has measured what the other precision would bring."""
    past, gain = subject.past, _bound(subject, evidence)
    if subject.matrix is not None and subject.matrix.most < _WORTH_RATIO:
        return Station("mixed precision", "idle", tuple(evidence), gain=gain)
    if not subject.on_gpu:
        return Station(
            "mixed precision", "unknown", tuple(evidence), f"{_measure(subject)} {_ON_CPU} {_share(subject)}".strip(), gain
        )
    if room := head_room(past):
        evidence.append(room)
    capability = str(past.facts.get("device_compute_capability", ""))
    if capability.partition(".")[0].isdigit() and int(capability.partition(".")[0]) < _TENSOR_CORES_SINCE:
        evidence.append(
            f"A device of compute capability {capability} has no tensor cores: it would save memory and little time."
        )
    return Station("mixed precision", "next", tuple(evidence), f"{_ADVICE} {_measure(subject)} {_share(subject)}".strip(), gain)


def _work(subject: Subject) -> list[str]:
    """What the step's time goes into, as far as somebody has looked."""
    found = []
    if (active := subject.activity) is not None:
        found.append(
            f"The tensor cores were active {active.tensor_ratio:.1%} of the time and the multiprocessors"
            f" {active.multiprocessor_ratio:.0%} (GPM, {active.seconds:,} s of training)."
        )
    if (matrix := subject.matrix) is not None:
        where = "of the GPU's kernels" if matrix.on_gpu else "on the CPU"
        found.append(
            f"Matrix products and convolutions take {matrix.ratio:.0%} of a step (torch's profiler, {where},"
            f" {matrix.steps} step{'' if matrix.steps == 1 else 's'} up to {matrix.step:,})."
        )
    return found


def _bound(subject: Subject, evidence: list[str]) -> Gain | None:
    """The most that faster matrix products could bring; where nobody has looked, faster forward and backward passes."""
    if subject.matrix is not None:
        text = f"at most {subject.matrix.most:.2f}x, which matrix products that take no time at all would bring"
        return Gain(text, ESTIMATE)
    shares = phase_shares(subject.past)
    compute = shares.get("forward", 0.0) + shares.get("backward", 0.0)
    if not compute:
        return None
    evidence.append(f"Forward and backward take {compute:.0%} of the step.")
    if compute > _SAYS_NOTHING_RATIO:
        return None
    return Gain(f"at most {1 / (1 - compute):.2f}x, since the rest of the step stays as it is", ESTIMATE)


def _measure(subject: Subject) -> str:
    if subject.past.facts.get("amp_probe_failed"):  # what refused once refuses again until somebody mends it
        return "Measure it when what the probe refused is mended: gpuwatch run --amp-probe -- and the run's command."
    if subject.ended:
        return "This run has ended; gpuwatch run --amp-probe -- and its command measure it in the next one."
    return f"gpuwatch probe amp {subject.run} measures it in the running job."


def _share(subject: Subject) -> str:
    if subject.matrix is not None or subject.ended:
        return ""
    return f"gpuwatch advise {subject.run} --trace first looks at how much of a step is matrix products, which bounds it."


_LET_GROW = "Let the loss scale grow to what the gradients want (init_scale, a smaller growth_interval)"
_USE_BFLOAT16 = "Use bfloat16, which has float32's range: at no loss scale does fp16 hold all of these gradients."
_ADVICE = "Wrap forward and loss in torch.autocast; with float16 also use torch.amp.GradScaler, with bfloat16 nothing else."
_SLOWER = "Train in float32, which the probe found to be faster here, unless it is the memory that autocast is for."
_ON_CPU = "On a CPU it pays only where that computes in bfloat16 itself (AMX, AVX512-BF16)."


def _in_use(subject: Subject, evidence: list[str]) -> Station:
    past = subject.past
    lost = [value for value in past.values("grad_underflow_ratio") if value == value]  # noqa: PLR0124  # not NaN
    skipped = sum(1 for value in past.values("skipped") if value > 0.0)
    scales = past.values("loss_scale")
    if len(scales):
        evidence.append(f"Loss scale {scales[-1]:g} at the end, {skipped:,} of {len(past.steps):,} updates skipped.")
    found = half_range(past) if len(scales) else None
    if found is not None:
        best = found.recommended_power
        evidence.append(f"The last gradients want a loss scale of {1 << best:,}, at which fp16 loses {found.lost[best]:.2%}.")
        losing = found.first_to_underflow(of_scale(scales[-1]) if len(scales) else 0)[:_NAMED_LAYERS]
        if losing:
            evidence.append(f"First to underflow: {', '.join(layer.name for layer in losing)}.")
    if lost:
        evidence.append(f"fp16 would flush {statistics.median(lost):.2%} of the gradient entries to zero (median).")
        if statistics.median(lost) > _UNDERFLOW_RATIO:
            fits = found is not None and found.fits
            action = f"{_LET_GROW}, or use bfloat16, which needs none." if fits else _USE_BFLOAT16
            return Station("mixed precision", "next", tuple(evidence), action)
    return Station("mixed precision", "done", tuple(evidence))
