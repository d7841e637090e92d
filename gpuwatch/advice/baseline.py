"""Before anything else: a healthy run that does not wait for its data."""

from __future__ import annotations

from gpuwatch.advice.station import ESTIMATE, Gain, Station, Subject, phase_shares

#: A loader that takes less than this is hidden behind noise.
_STARVED_RATIO = 0.1
_GRAVE = ("critical", "warning")
#: Findings about gpuwatch itself: nothing of the training has to be mended for them.
_OWN = ("hook_overhead", "records_overwritten", "exporter_paused", "sampler_stuck")


def baseline(subject: Subject) -> Station:
    """Whether the plain training is one to build on."""
    grave = list(dict.fromkeys(f.rule for f in subject.past.findings if f.severity in _GRAVE and f.rule not in _OWN))
    evidence, shares = [], phase_shares(subject.past)
    measured = subject.measures
    if measured.steps_per_second is not None:
        evidence.append(f"{measured.steps:,} steps at {measured.steps_per_second:.3g} it/s in {measured.precision}.")
    if shares:
        told = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        evidence.append(f"Time of a step: {told}.")
    if grave:
        evidence.append(f"Findings: {', '.join(grave)}.")
        action = f"Mend the training first: gpuwatch explain {grave[0]}. What is wrong stays wrong at twice the speed."
        return Station("baseline", "next", tuple(evidence), action)
    waiting = shares.get("data", 0.0)
    if waiting > _STARVED_RATIO:
        action = "Give the DataLoader more workers (num_workers, persistent_workers, pin_memory), or do less for each sample."
        gain = Gain(f"at most {1 / (1 - waiting):.2f}x, if the wait for data ({waiting:.0%} of the step) goes", ESTIMATE)
        return Station("baseline", "next", tuple(evidence), action, gain)
    return Station("baseline", "done" if evidence else "unknown", tuple(evidence))
