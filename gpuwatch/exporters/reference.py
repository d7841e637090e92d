"""docs/metrics.md, written from the catalogue: `python -m gpuwatch.exporters.reference > docs/metrics.md`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from gpuwatch.exporters.catalogue import METRICS, PREFIX, Metric

_HEAD = """\
# Metrics

Generated from `gpuwatch/exporters/catalogue.py` by `python -m gpuwatch.exporters.reference > docs/metrics.md`.

`GET /metrics` answers in Prometheus's text format, or in OpenMetrics when the scraper prefers it. Every name begins with
`{prefix}`. What was not measured is absent, never 0. `info` metrics are always 1 and carry facts as labels: join them by the
labels that they share, for example

    gpuwatch_gpu_memory_used_bytes * on (gpu) group_left (name) gpuwatch_gpu_info
    gpuwatch_train_loss * on (run, rank) group_left (precision) gpuwatch_train_info

Counters survive a restart of the daemon where a run's journal has them (`train_*`), and begin again otherwise. A run that has
ended keeps its series for five minutes. Where a run was started several times under one name and rank, the latest is shown.

An optimizer that evaluates a closure several times in one step (LBFGS) has the loss of its first evaluation, which is the loss
at the weights that the step begins with, and the gradients of its last one, which are those that are there when the step is
over.

Limits: {limits}
"""
_LIMITS = (
    "`limits.process_rows` processes of a GPU have series of their own (training processes first, then by memory), the rest is "
    'summed as `pid="other"`; `limits.tags_per_run` tags, the rest is folded into `_other`; layers only with '
    "`prometheus.layer_top_k`; only with `prometheus.details` what is marked as a detail, the throttled time by `sync_boost`, "
    "`board_limit` and `reliability`, the `video` clocks, the `graphics` clock's maximum and the threshold `gpu_max`. Eight "
    "GPUs with 40 processes and a run of 8 ranks stay under 1,500 series and 150 kB."
)
_SECTIONS: dict[str, Callable[[str], bool]] = {
    "The daemon": lambda name: not name.startswith(("gpu_", "host_", "train_")),
    "GPUs": lambda name: name.startswith("gpu_") and not name.startswith("gpu_process_"),
    "Processes on GPUs": lambda name: name.startswith("gpu_process_"),
    "The host": lambda name: name.startswith("host_"),
    "Training": lambda name: name.startswith("train_"),
}


def page() -> str:
    """The whole page, Markdown."""
    parts = [_HEAD.format(prefix=PREFIX, limits=_LIMITS)]
    for title, belongs in _SECTIONS.items():
        rows = [_row(metric) for metric in METRICS if belongs(metric.name)]
        parts.append(f"\n## {title}\n\n| name | type | labels | unit | meaning |\n|---|---|---|---|---|\n" + "".join(rows))
    return "".join(parts)


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    meaning = metric.meaning + (" A detail." if metric.detail else "")
    return f"| `{PREFIX}{metric.name}` | {metric.kind} | {labels} | {metric.unit} | {meaning} |\n"


if __name__ == "__main__":
    sys.stdout.write(page())
