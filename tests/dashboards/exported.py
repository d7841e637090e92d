"""What a Prometheus that scrapes daemons can know: every name and label, from the catalogue that docs/metrics.md is made of."""

from gpuwatch.exporters.catalogue import METRICS, PREFIX

#: What Prometheus adds to each series that it scrapes.
TARGET_LABELS = {"job", "instance"}


def series():
    """Name of each series -> its labels."""
    found = {}
    for metric in METRICS:
        labels = set(metric.labels) | TARGET_LABELS
        if metric.kind == "histogram":
            found |= {PREFIX + metric.name + suffix: labels for suffix in ("_sum", "_count")}
            found[PREFIX + metric.name + "_bucket"] = labels | {"le"}
        else:
            found[PREFIX + metric.name] = labels
    return found


SERIES = series()
