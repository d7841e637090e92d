"""All stations in their order, and which one comes next."""

from __future__ import annotations

from gpuwatch.advice.accumulation import accumulation
from gpuwatch.advice.baseline import baseline
from gpuwatch.advice.distributed import distributed
from gpuwatch.advice.precision import mixed_precision
from gpuwatch.advice.quantisation import quantisation
from gpuwatch.advice.station import Station, Subject

STATIONS = (baseline, mixed_precision, accumulation, distributed, quantisation)


def roadmap(subject: Subject) -> list[Station]:
    """Every station of the run, first things first; at most one stands as `next`, those behind it as `later`."""
    stations = []
    taken = False
    for look in STATIONS:
        station = look(subject)
        if station.standing == "next":
            if taken:
                station = Station(station.name, "later", station.evidence, station.action, station.gain)
            taken = True
        stations.append(station)
    return stations
