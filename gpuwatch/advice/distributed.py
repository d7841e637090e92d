"""Distributed training: whether more devices would help, and whether those in use keep pace with each other."""

from __future__ import annotations

import statistics

from gpuwatch.advice.station import ESTIMATE, MEASURED, Gain, Station, Subject, phase_shares

_STRAGGLING_RATIO = 1.05


def distributed(subject: Subject) -> Station:
    """How far the ranks are apart; for a single process, what bounds the gain of a second one."""
    if subject.world_size > 1:
        return _ranks(subject)
    serial = phase_shares(subject.past).get("data", 0.0)
    evidence = ["One process trains."]
    if not subject.on_gpu:
        return Station("distributed training", "later", tuple(evidence), "Processes on one CPU share its cores: use one.")
    if serial:
        evidence.append(f"{serial:.0%} of the step is waiting for data, which every further rank adds to on one host.")
    gain = Gain("at most the number of devices, less the all-reduce of all gradients at each step", ESTIMATE)
    return Station(
        "distributed training",
        "later",
        tuple(evidence),
        "torchrun --nproc-per-node N with DistributedDataParallel, once one device is used well.",
        gain,
    )


def _ranks(subject: Subject) -> Station:
    times = subject.rank_step_seconds
    evidence = [f"{subject.world_size} ranks, {len(times)} of them recorded here."]
    if len(times) < 2:
        return Station("distributed training", "done", tuple(evidence))
    slowest = max(times, key=lambda rank: times[rank])
    ratio = times[slowest] / statistics.median(times.values())
    evidence.append(f"The slowest rank, {slowest}, takes {ratio:.2f} times the median step.")
    if ratio > _STRAGGLING_RATIO:
        gain = Gain(f"{ratio:.2f}x, if it kept pace: the others wait for it at each step", MEASURED)
        action = f"Look at rank {slowest}: its data, its device's clocks and temperature (gpuwatch top), its host's other load."
        return Station("distributed training", "next", tuple(evidence), action, gain)
    return Station("distributed training", "done", tuple(evidence))
