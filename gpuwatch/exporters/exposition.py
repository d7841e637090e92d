"""Prometheus's text format and OpenMetrics, written from families of plain tuples.

Here something of ours stands in for a library. prometheus_client would add 7.4 MiB to a daemon of 25 (it brings ssl,
http.server and wsgiref) and take 6 ms for 1,264 series, 10 ms in OpenMetrics, where this takes 0.3 MiB and 1 ms
(tests/bench/bench_exposition.py). The tests hold it to what prometheus_client's own parsers read.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from gpuwatch.exporters.catalogue import PREFIX, Metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gpuwatch.state.durations import Durations

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
#: Histograms whose text is kept: one for each run that there is, and those of many that are gone.
_MAX_HISTOGRAMS = 64


class Family(NamedTuple):
    """The samples of one metric: (label values in the metric's order, value); a value is a Durations for a histogram."""

    metric: Metric
    samples: Sequence[tuple[tuple[str, ...], float | Durations]]


class Renderer:
    """Renders families again and again. The line of a series is kept, and written anew when its value is another one:

    of a node's 750 series, 500 are limits, facts and counts that stand still from one scrape to the next.
    """

    def __init__(self) -> None:
        self.written = 0  # lines of series that had to be written, since the beginning
        self._lines: dict[str, dict[tuple[str, ...], tuple[float, str]]] = {}  # metric -> values of its labels -> value, line
        self._heads: dict[str, str] = {}
        self._buckets: dict[tuple[str, ...], list[str]] = {}  # metric and values of its labels -> text in front of each count

    def render(self, families: Iterable[Family], *, openmetrics: bool) -> bytes:
        """All families as one document, for one renderer always of the same format. Families without samples are left out."""
        parts: list[str] = []
        for metric, samples in families:
            if not samples:
                continue
            head = self._heads.get(metric.name)
            if head is None:
                head = self._heads[metric.name] = _head(metric, openmetrics=openmetrics)
            parts.append(head)
            kept = self._lines.get(metric.name)
            if kept is None or len(kept) > 2 * len(samples) + 16:
                kept = self._lines[metric.name] = {}  # most of them belong to processes and runs that are gone
            for labels, value in samples:
                if isinstance(value, (float, int)):  # 0.1 us less than with a union, a thousand times a scrape
                    known = kept.get(labels)
                    if known is None:
                        line = f"{PREFIX}{metric.name}{_labels(metric.labels, labels)} {number(value)}"
                    elif known[0] == value:
                        parts.append(known[1])
                        continue
                    else:  # the value is what follows the last space
                        line = known[1][: known[1].rindex(" ") + 1] + number(value)
                    kept[labels] = value, line
                    self.written += 1
                    parts.append(line)
                else:
                    parts += self._histogram(metric, labels, value)
        if openmetrics:
            parts.append("# EOF")
        return ("\n".join(parts) + "\n").encode() if parts else b""

    def _histogram(self, metric: Metric, labels: tuple[str, ...], value: Durations) -> list[str]:
        fronts = self._buckets.get((metric.name, *labels))
        if fronts is None:
            if len(self._buckets) > _MAX_HISTOGRAMS:
                self._buckets.clear()
            fronts = self._buckets[metric.name, *labels] = _bucket_fronts(metric, labels, value)
        lines = [front + str(count) for front, count in zip(fronts, accumulate(value.counts), strict=False)]
        running = sum(value.counts)
        return [*lines, f"{fronts[-2]}{running}", fronts[-1] + number(value.sum_seconds)]


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


def _bucket_fronts(metric: Metric, labels: tuple[str, ...], durations: Durations) -> list[str]:
    """The text in front of each bucket's count, then of the whole count and of the sum."""
    name, own = PREFIX + metric.name, _labels(metric.labels, labels)
    bounds = [*map(repr, durations.bounds_seconds), "+Inf"]
    buckets = [f"{name}_bucket{_labels((*metric.labels, 'le'), (*labels, bound))} " for bound in bounds]
    return [*buckets, f"{name}_count{own} ", f"{name}_sum{own} "]
