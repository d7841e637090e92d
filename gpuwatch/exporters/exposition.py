"""Prometheus's text format and OpenMetrics, written from families of plain tuples.

Here something of ours stands in for a library. prometheus_client would add 7.4 MiB to a daemon of 25 (it brings ssl,
http.server and wsgiref) and take 6 ms for 1,264 series, 10 ms in OpenMetrics, where this takes 0.3 MiB and 1 ms
(tests/bench/bench_exposition.py). The tests hold it to what prometheus_client's own parsers read.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from gpuwatch.exporters.catalogue import PREFIX, Metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gpuwatch.state.durations import Durations

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Family(NamedTuple):
    """The samples of one metric: (label values in the metric's order, value); a value is a Durations for a histogram."""

    metric: Metric
    samples: Sequence[tuple[tuple[str, ...], float | Durations]]


class Renderer:
    """Renders families again and again; keeps the text in front of each value from one time to the next."""

    def __init__(self) -> None:
        self._fronts: dict[str, dict[tuple[str, ...], str]] = {}  # metric -> values of its labels -> text

    def render(self, families: Iterable[Family], *, openmetrics: bool) -> bytes:
        """All families as one document. Families without samples are left out."""
        lines: list[str] = []
        for metric, samples in families:
            if not samples:
                continue
            lines.append(_head(metric, openmetrics=openmetrics))
            name = PREFIX + metric.name
            fronts = self._fronts.setdefault(metric.name, {})
            if len(fronts) > 2 * len(samples) + 16:
                fronts.clear()  # most of them belong to processes and runs that are gone
            for labels, value in samples:
                if isinstance(value, (float, int)):  # 0.1 us less than with a union, a thousand times a scrape
                    front = fronts.get(labels)
                    if front is None:
                        front = fronts[labels] = f"{name}{_labels(metric.labels, labels)} "
                    lines.append(front + number(value))
                else:
                    lines += _histogram(name, metric.labels, labels, value)
        if openmetrics:
            lines.append("# EOF")
        return ("\n".join(lines) + "\n").encode() if lines else b""


def wants_openmetrics(accept: str) -> bool:
    """Whether an Accept header prefers OpenMetrics to the text format."""
    best = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for part in accept.split(","):
        kind, *parameters = [piece.strip() for piece in part.split(";")]
        quality = 1.0
        version = ""
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
            elif key == "version":
                version = value
        if kind in best and (kind == "text/plain" or version in ("", "1.0.0", "0.0.1")):
            best[kind] = max(best[kind], quality)
    return best["application/openmetrics-text"] > best["text/plain"]


def number(value: float) -> str:
    """A value as both formats write it: whole numbers without a fraction, infinities and NaN by Go's names."""
    if -1e15 < value < 1e15:
        whole = int(value)
        return str(whole) if value == whole else repr(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)


def _head(metric: Metric, *, openmetrics: bool) -> str:
    name, kind = PREFIX + metric.name, metric.kind
    if openmetrics:
        # There the family is named without the suffix that its samples carry.
        name = name.removesuffix({"counter": "_total", "info": "_info"}.get(kind, ""))
    elif kind == "info":
        kind = "gauge"
    meaning = metric.meaning.replace("\\", "\\\\").replace("\n", "\\n")
    if openmetrics:
        meaning = meaning.replace('"', '\\"')
    return f"# HELP {name} {meaning}\n# TYPE {name} {kind}"


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not names:
        return ""
    pairs = [f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True)]
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        value = value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
    # A lone surrogate (an undecodable byte of a name) has no UTF-8, and one would take the whole scrape with it.
    return value.encode("utf-8", "replace").decode()


def _histogram(name: str, names: tuple[str, ...], labels: tuple[str, ...], durations: Durations) -> list[str]:
    lines = []
    running = 0
    bounds = [*map(repr, durations.bounds_seconds), "+Inf"]
    for bound, count in zip(bounds, durations.counts, strict=True):
        running += count
        lines.append(f"{name}_bucket{_labels((*names, 'le'), (*labels, bound))} {running}")
    own = _labels(names, labels)
    return [*lines, f"{name}_count{own} {running}", f"{name}_sum{own} {number(durations.sum_seconds)}"]
