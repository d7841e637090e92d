"""The samples of one scrape, gathered by metric and given back in the order of the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuwatch.exporters.catalogue import BY_NAME, METRICS
from gpuwatch.exporters.exposition import Family

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpuwatch.state.durations import Durations


_DETAILS = frozenset(metric.name for metric in METRICS if metric.detail)


class Samples:
    """`add` by metric name (without prefix); what is None is absent, and so left out. Details are taken with `details` only."""

    def __init__(self, *, details: bool = True) -> None:
        self.without_details = not details
        self._left_out: frozenset[str] = frozenset() if details else _DETAILS
        self._samples: dict[str, list[tuple[tuple[str, ...], float | Durations]]] = {}

    def add(self, name: str, labels: tuple[str, ...], value: float | Durations | None) -> None:
        """`labels` are the values of the metric's labels, in its order."""
        if value is not None and name not in self._left_out:
            self._samples.setdefault(name, []).append((labels, value))

    def add_named(self, name: str, labels: dict[str, str], value: float) -> bool:
        """Labels by name, in any order; one that is not given is empty. False: there is no such metric."""
        metric = BY_NAME.get(name)
        if metric is None or not labels.keys() <= set(metric.labels):
            return False
        self.add(name, tuple(labels.get(label, "") for label in metric.labels), value)
        return True

    def families(self) -> Iterator[Family]:
        for metric in METRICS:
            if metric.name in self._samples:
                yield Family(metric, self._samples[metric.name])
