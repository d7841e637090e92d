"""Quantisation: of the trained model, for inference. It does not speed up training, and so it comes last."""

from __future__ import annotations

from gpuwatch.advice.station import MEASURED, Gain, Station, Subject

_WORTH_RATIO = 1.1
_MEASURE = "It is for inference, not for training; gpuwatch.compare_int8(model, inputs) measures it on a CPU."


def quantisation(subject: Subject) -> Station:
    """What int8 brings to the model's forward pass, where the job has measured it (gpuwatch.compare_int8)."""
    facts = subject.past.facts
    speedup, error = facts.get("int8_speedup_ratio"), facts.get("int8_output_error_ratio")
    if not isinstance(speedup, int | float) or not isinstance(error, int | float):
        return Station("quantisation", "later", (), _MEASURE)
    by = f" by {facts['int8_by']}" if "int8_by" in facts else ""
    evidence = (f"Dynamic int8{by}: forward {speedup:.2f}x, outputs {error:.1%} off (relative L2), on the model's own batch.",)
    gain = Gain(f"{speedup:.2f}x in inference", MEASURED)
    if speedup < _WORTH_RATIO:
        return Station("quantisation", "idle", evidence, gain=gain)
    return Station("quantisation", "later", evidence, "Quantise after training; check the accuracy on your own test set.", gain)
