"""A real Prometheus scrapes the real server, and every name that we export answers a query with the right value."""

import time

import pytest

from gpuwatch.config import Config
from gpuwatch.exporters import notifications
from gpuwatch.exporters.catalogue import METRICS
from gpuwatch.exporters.http import HttpServer
from gpuwatch.exporters.pages import Pages
from gpuwatch.exporters.prometheus import Prometheus
from gpuwatch.selfstats import SelfStats
from gpuwatch.state.records import Meta
from gpuwatch.state.store import State
from tests.exporters.job import PROBED, Job
from tests.exporters.node import fill
from tests.exporters.prometheus_server import PrometheusServer
from tests.exporters.test_exposition import read
from tests.exporters.test_prometheus import RULES, finding, with_layers


class Node:
    """A state, the exporter over it, and the Prometheus that scrapes it."""

    def __init__(self, folder):
        self.state, self.stats = State(str(folder / "runs")), SelfStats()
        self.stats.beat("intake")
        self.stats.count(notifications.COUNTER, "webhook/sent")
        self.exporter = Prometheus(with_layers(3, details=True), self.state, self.stats, "0.1.0", RULES)
        pages = Pages(self.state, self.stats, "0.1.0").routes(self.exporter.serve)
        self.http = HttpServer(Config(), ("127.0.0.1", 0), pages)
        self.http.start()
        self.prometheus = PrometheusServer(self.http.url.removeprefix("http://"), folder)

    def close(self):
        self.prometheus.close()
        self.http.stop()
        self.state.close()


@pytest.fixture
def node(tmp_path):
    node = Node(tmp_path)
    yield node
    node.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    node = Node(tmp_path_factory.mktemp("node"))
    try:
        train(node.state)
        node.prometheus.until(lambda server: len(server.query("gpuwatch_train_steps_total")) == 2)
        yield node
    finally:
        node.close()


def train(state):
    pids = (4000, 4001)
    for rank, pid in enumerate(pids):
        job = Job(state, "digits", rank=rank, world_size=2, pid=pid)
        for step in range(1, 61):
            job.step(step)
        job.scalar('Accuracy/val "odd\\name"\n', 60, 0.75)
        job.scalar("NaN", 60, float("nan"))
        job.control(Meta(PROBED))
        state.find(job.run, finding())
    fill(state, gpus=2, processes=3, ranks=pids, now_ns=time.monotonic_ns())


def test_the_amp_probe_is_a_table_of_precisions(trained):
    query, run = trained.prometheus.query, ("run", "digits")
    precisions = {name: frozenset((run, ("precision", name))) for name in ("float32", "bfloat16")}
    assert query("gpuwatch_train_amp_speedup_ratio") == {frozenset((run,)): 1.5}
    durations = query("gpuwatch_train_amp_step_duration_seconds")
    assert durations == {precisions["float32"]: 0.125, precisions["bfloat16"]: pytest.approx(1 / 12)}
    peak = "gpuwatch_train_amp_peak_memory_bytes"
    assert query(peak) == {precisions["float32"]: 4e9, precisions["bfloat16"]: 3e9}
    saved = f'1 - {peak}{{precision!="float32"}} / on(run) group_left {peak}{{precision="float32"}}'
    assert query(saved) == {precisions["bfloat16"]: 0.25}


def test_every_series_arrives_with_its_value(trained):
    expected = {}
    for _, _, samples in read(trained.exporter.document(), openmetrics=False).values():
        for (name, labels), value in samples.items():
            # To Prometheus an empty label is none.
            expected.setdefault(name, {})[frozenset(pair for pair in labels if pair[1])] = value
    assert {"gpuwatch_" + metric.name for metric in METRICS if metric.kind != "histogram"} <= set(expected)
    for name, series in expected.items():
        assert trained.prometheus.query(name) == series, name


def test_types_and_help_arrive(trained):
    metadata = trained.prometheus.get("targets/metadata", match_target='{job="gpuwatch"}')
    found = {row["metric"]: (row["type"], row["help"]) for row in metadata}
    for metric in METRICS:
        # Prometheus knows a counter and an info of OpenMetrics by the family's name, without the suffix.
        name = "gpuwatch_" + metric.name.removesuffix({"counter": "_total", "info": "_info"}.get(metric.kind, ""))
        assert found[name] == (metric.kind, metric.meaning), name


def test_quantiles_and_joins_work(trained):
    query = trained.prometheus.query
    (value,) = query("histogram_quantile(0.5, sum by (le) (gpuwatch_train_step_duration_seconds_bucket))").values()
    assert 0.1 < value <= 0.2  # every step took 0.125 s
    joined = query("gpuwatch_train_loss * on (run, rank) group_left (precision) gpuwatch_train_info")
    assert {dict(labels)["precision"] for labels in joined} == {"fp16"}
    joined = query("gpuwatch_gpu_process_memory_bytes * on (gpu, pid) group_left (run) gpuwatch_gpu_process_info")
    assert sorted(dict(labels).get("run", "") for labels in joined) == ["", "", "", "", "digits", "digits"]


def test_a_finding_is_an_increase_and_what_has_gone_is_stale(node):
    until = node.prometheus.until
    job = Job(node.state)
    job.step(1)
    fill(node.state, gpus=1, processes=2, now_ns=time.monotonic_ns())
    until(lambda server: len(server.query("gpuwatch_gpu_process_memory_bytes")) == 2)
    node.state.find(job.run, finding())
    gpu = next(iter(node.state.gpus))
    del gpu.processes[max(gpu.processes)]
    node.stats.fail("sampler", "stuck")
    until(lambda server: server.query('increase(gpuwatch_train_alerts_total{rule="nonfinite_gradient"}[1m]) > 0'))
    until(lambda server: len(server.query("gpuwatch_gpu_process_memory_bytes")) == 1)
    until(lambda server: server.query('gpuwatch_component_up{component="sampler"} == 0'))
