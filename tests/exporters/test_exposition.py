"""Our exposition against prometheus_client: its parsers read from it what they read from the library's own output."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gpuwatch.exporters.catalogue import Metric
from gpuwatch.exporters.exposition import Family, Renderer, number, wants_openmetrics
from gpuwatch.state.durations import Durations

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
VALUE = st.one_of(st.floats(), st.integers(-(10**18), 10**18))
LABELS = ("run", "rank")


def read(document, *, openmetrics):
    """{family: (type, help, {(sample, labels): value})}; NaN as a word, since it equals nothing."""
    families = {}
    for family in (parse_openmetrics if openmetrics else parse_text)(document.decode()):
        samples = {}
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples
            samples[key] = "NaN" if math.isnan(sample.value) else float(sample.value)
        families[family.name] = (family.type, family.documentation, samples)
    return families


class Library:
    """The same families, as a collector for prometheus_client."""

    def __init__(self, families):
        self.families = families

    def collect(self):
        kinds = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily, "histogram": HistogramMetricFamily}
        for metric, samples in self.families:
            name = "gpuwatch_" + metric.name
            if metric.kind == "info":
                family = InfoMetricFamily(name.removesuffix("_info"), metric.meaning)
                for labels, _ in samples:
                    family.add_metric([], dict(zip(metric.labels, labels, strict=True)))
                yield family
                continue
            family = kinds[metric.kind](name, metric.meaning, labels=metric.labels)
            for labels, value in samples:
                if metric.kind == "histogram":
                    running, buckets = 0, []
                    for bound, count in zip([*map(str, value.bounds_seconds), "+Inf"], value.counts, strict=True):
                        running += count
                        buckets.append((bound, running))
                    family.add_metric(labels, buckets, value.sum_seconds)
                else:
                    family.add_metric(labels, value)
            yield family


def by_library(families, *, openmetrics):
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Library(families))
    return (openmetrics_exposition.generate_latest if openmetrics else generate_latest)(registry)


@st.composite
def families(draw):
    durations = Durations()
    for seconds in draw(st.lists(st.floats(0, 1e6), max_size=5)):
        durations.add(seconds)
    pairs = draw(st.lists(st.tuples(TEXT, TEXT), unique=True, min_size=1, max_size=4))
    count = st.floats(0, 1e18)
    return [
        Family(Metric("a_ratio", "gauge", LABELS, draw(TEXT)), [(pair, draw(VALUE)) for pair in pairs]),
        Family(Metric("b_total", "counter", LABELS, draw(TEXT)), [(pair, draw(count)) for pair in pairs]),
        Family(Metric("c_info", "info", LABELS, draw(TEXT)), [(pair, 1) for pair in pairs]),
        Family(Metric("d_seconds", "histogram", LABELS, draw(TEXT)), [(pair, durations) for pair in pairs]),
        Family(Metric("e", "gauge", (), "without labels"), [((), draw(VALUE))]),
    ]


@pytest.mark.parametrize("openmetrics", [False, True])
@given(families=families())
def test_the_library_reads_the_same_from_ours_as_from_its_own(openmetrics, families):
    ours = Renderer().render(families, openmetrics=openmetrics)
    assert read(ours, openmetrics=openmetrics) == read(by_library(families, openmetrics=openmetrics), openmetrics=openmetrics)


@given(st.floats(allow_nan=False) | st.integers(-(10**18), 10**18))
def test_a_number_is_read_back_as_it_was(value):
    assert float(number(value).replace("Inf", "inf")) == float(value)


def test_special_numbers():
    assert [number(v) for v in (math.nan, math.inf, -math.inf, -0.0, 3.0, 0.1)] == ["NaN", "+Inf", "-Inf", "0", "3", "0.1"]


def test_text_in_front_of_a_value_is_not_kept_for_ever():
    """Ten thousand processes have come and gone: what is kept of them is no more than twice what there is, and a little."""
    renderer = Renderer()
    metric = Metric("a", "gauge", ("pid",), "A.")
    for pid in map(str, range(10_000)):
        document = renderer.render([Family(metric, [((pid,), 6)])], openmetrics=False)
    assert b'pid="9999"} 6\n' in document
    assert document.count(b"pid=") == 1
    assert len(renderer._lines["a"]) <= 19


def test_only_what_has_changed_is_written_anew():
    renderer = Renderer()
    metric = Metric("a", "gauge", ("pid",), "A.")
    values = {str(pid): float(pid) for pid in range(100)}
    renderer.render([Family(metric, [((pid,), value) for pid, value in values.items()])], openmetrics=False)
    assert renderer.written == 100
    values |= {"7": 0.5, "8": math.nan, "9": 9.0}
    for scrape in range(1, 4):
        document = renderer.render([Family(metric, [((pid,), value) for pid, value in values.items()])], openmetrics=False)
        assert renderer.written == 101 + scrape  # the new value once, and NaN, which equals nothing, each time
    read = {line.split()[0]: float(line.split()[1]) for line in document.decode().splitlines() if line[0] != "#"}
    assert read.pop('gpuwatch_a{pid="8"}') != 0
    assert read == {f'gpuwatch_a{{pid="{pid}"}}': value for pid, value in values.items() if pid != "8"}


def test_a_histogram_goes_on_from_kept_text():
    renderer, durations = Renderer(), Durations()
    metric = Metric("d_seconds", "histogram", LABELS, "D.")
    for seconds in (0.5, 0.0015, 4000.0):
        durations.add(seconds)
        family = Family(metric, [(("a b", "0"), durations), (("c", "1"), Durations())])
        kept = renderer.render([family], openmetrics=False)
        assert kept == Renderer().render([family], openmetrics=False)
        assert read(kept, openmetrics=False) == read(by_library([family], openmetrics=False), openmetrics=False)


def test_a_name_that_is_no_unicode_does_not_cost_the_scrape():
    family = Family(Metric("a", "gauge", ("layer",), "A."), [(("x\udcff",), 1)])
    assert b'layer="x?"' in Renderer().render([family], openmetrics=False)


PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (PROMETHEUS, True),
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("text/html,application/xhtml+xml", False),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", True),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=0.2,text/plain;q=0.9", False),
        ("application/openmetrics-text;q=nonsense", False),
        ("application/openmetrics-text;version=7.0.0", False),
    ],
)
def test_which_format(accept, expected):
    assert wants_openmetrics(accept) is expected


def test_the_library_would_answer_prometheus_in_the_same_format():
    assert "openmetrics" in choose_encoder(PROMETHEUS)[1]
    assert "openmetrics" not in choose_encoder("text/plain")[1]
