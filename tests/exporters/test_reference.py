from pathlib import Path

from gpuwatch.exporters.catalogue import METRICS
from gpuwatch.exporters.reference import page

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_page_is_current():
    assert DOCS.read_text() == page(), "run: python -m gpuwatch.exporters.reference > docs/metrics.md"


def test_every_metric_stands_in_one_section():
    assert all(page().count(f"| `gpuwatch_{metric.name}` |") == 1 for metric in METRICS)


def test_names_follow_the_rules_of_the_trade():
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.name.endswith("_info") == (metric.kind == "info"), metric.name
        assert metric.meaning.endswith("."), metric.name
        assert not set(metric.labels) & {"le", "instance", "hostname", "quantile"}, metric.name
