import math
import subprocess
import time
from pathlib import Path

import msgspec
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gpuwatch.config import Config, Limits
from gpuwatch.detectors.registry import BY_NAME
from gpuwatch.exporters import notifications, prometheus
from gpuwatch.exporters.catalogue import BY_NAME as BY_METRIC
from gpuwatch.exporters.catalogue import DETAIL_VALUES, METRICS
from gpuwatch.exporters.prometheus import Prometheus
from gpuwatch.state.findings import Finding
from gpuwatch.state.records import Meta
from tests.exporters.job import PROBED, Job
from tests.exporters.node import fill

GOLDEN = Path(__file__).parent / "golden"
RULES = sorted(BY_NAME)


@pytest.fixture
def exporter(state, stats, config):
    stats.beat("intake")
    stats.beat("tensorboard")
    return Prometheus(config, state, stats, "0.1.0", RULES)


def scrape(exporter):
    """{name: {labels as a frozenset of pairs: value}} as the library's parser reads our text."""
    exporter._documents.clear()
    found = {}
    for family in parse_text(exporter.document().decode()):
        for sample in family.samples:
            rows = found.setdefault(sample.name, {})
            key = frozenset(sample.labels.items())
            assert key not in rows, f"{sample.name} twice with {sample.labels}"
            rows[key] = sample.value
    return found


def one(found, name, **labels):
    """The value of the one series of `name` whose labels include `labels`."""
    matching = [value for key, value in found["gpuwatch_" + name].items() if labels.items() <= dict(key).items()]
    assert len(matching) == 1, (name, labels, matching)
    return matching[0]


def with_layers(top_k, *, details=False):
    return Config(prometheus=msgspec.structs.replace(Config().prometheus, layer_top_k=top_k, details=details))


def finding(rule="nonfinite_gradient", **more):
    words = {"statistic": "entries", "value": 3.0, "threshold": 0.0, "summary": "s", "action": "a", "time": 1.0}
    return Finding(rule=rule, severity="critical", first_step=5, step=5, last_step=5, **words, **more)


def whole(state, now_ns):
    """A state in which everything has a value."""
    job = Job(state, start_ns=10**9, pid=4242)
    job.step(1)
    job.step(2, loss=math.nan)
    job.scalar("Accuracy/val", 2, 0.75)
    job.control(Meta(PROBED))
    state.find(job.run, finding())
    fill(state, gpus=1, processes=2, ranks=[4242], now_ns=now_ns)
    return job


@pytest.mark.parametrize("openmetrics", [False, True])
def test_golden(state, exporter, monkeypatch, openmetrics):
    # A change of this file is a change of what dashboards, rules and users' scripts hang on.
    now_ns = 10**12
    monkeypatch.setattr(prometheus.time, "monotonic_ns", lambda: now_ns)
    exporter._config = with_layers(2)
    exporter._rules = ["gpu_lost", "nonfinite_gradient"]  # a rule more is no change of the format
    whole(state, now_ns)
    document = exporter.document(openmetrics=openmetrics).decode()
    path = GOLDEN / ("metrics.openmetrics" if openmetrics else "metrics.txt")
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(document)
        pytest.fail(f"{path.name} was missing and has been written: look at it, then run again")
    assert document.splitlines() == path.read_text().splitlines()
    assert list((parse_openmetrics if openmetrics else parse_text)(document))


def test_every_metric_of_the_catalogue_has_a_value_somewhere(state, exporter, stats):
    stats.count(notifications.COUNTER, "webhook/sent")
    exporter._config = with_layers(2, details=True)
    whole(state, time.monotonic_ns())
    named = {family.metric.name for family in exporter.samples().families()}
    assert named == {metric.name for metric in METRICS}


def test_promtool_has_nothing_to_say(state, exporter):
    whole(state, time.monotonic_ns())
    result = subprocess.run(
        ["promtool", "check", "metrics"], input=exporter.document(), capture_output=True, timeout=30, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_values_of_a_step(state, exporter):
    job = Job(state)
    for step in range(1, 61):
        job.step(step)
    found = scrape(exporter)
    rank = {"run": "digits", "rank": "0"}
    assert one(found, "train_steps_total", **rank) == 60
    assert one(found, "train_loss", **rank) == 4.0 - 60 / 1024
    assert one(found, "train_loss_scale", **rank) == 32768
    assert one(found, "train_loss_scale_backoffs_total", **rank) == 1
    assert one(found, "train_skipped_steps_total", **rank) == 1
    assert one(found, "train_nonfinite_gradients_total", **rank) == 3
    assert one(found, "train_phase_seconds_total", phase="backward", **rank) == 60 * 0.0625
    assert one(found, "train_step_duration_seconds_count", **rank) == 60
    assert one(found, "train_step_duration_seconds_bucket", le="0.1", **rank) == 0
    assert one(found, "train_step_duration_seconds_bucket", le="0.2", **rank) == 60
    assert one(found, "train_learning_rate", group="all", **rank) == 0.5
    assert one(found, "train_torch_allocated_bytes", gpu="0", **rank) == 1 << 30
    assert one(found, "train_last_step_timestamp_seconds", **rank) == pytest.approx(1.7e9 + 6.0)
    assert one(found, "train_hook_overhead_seconds_total", **rank) == 60 * 0.0009765625
    assert one(found, "train_records_total", **rank) == 60 * 6


def test_what_was_not_measured_is_absent(state, exporter):
    job = Job(state)
    found = scrape(exporter)
    assert "gpuwatch_train_loss" not in found
    assert "gpuwatch_host_cpu_utilization_ratio" not in found
    assert "gpuwatch_gpu_up" not in found
    assert "gpuwatch_train_last_step_timestamp_seconds" not in found
    job.step(1, loss=math.nan)
    assert math.isnan(one(scrape(exporter), "train_loss"))


def test_every_rule_is_there_before_its_first_finding(state, exporter):
    job = Job(state)
    assert {dict(key)["rule"] for key in scrape(exporter)["gpuwatch_train_alerts_total"]} == set(RULES)
    assert set(scrape(exporter)["gpuwatch_train_alerts_total"].values()) == {0}
    state.find(job.run, finding())
    found = scrape(exporter)
    assert one(found, "train_alerts_total", rule="nonfinite_gradient") == 1
    assert one(found, "train_alert_active", rule="nonfinite_gradient") == 1
    state.find(job.run, finding(state="closed"))
    found = scrape(exporter)
    assert one(found, "train_alerts_total", rule="nonfinite_gradient") == 1
    assert one(found, "train_alert_active", rule="nonfinite_gradient") == 0


def test_a_gpu_that_is_lost_keeps_its_counters_and_no_gauge(state, exporter):
    fill(state, gpus=2, now_ns=time.monotonic_ns())
    next(iter(state.gpus)).mark_down("lost")
    found = scrape(exporter)
    assert one(found, "gpu_up", gpu="0") == 0
    assert one(found, "gpu_up", gpu="1") == 1
    assert one(found, "gpu_energy_joules_total", gpu="0") > 0
    assert [dict(key)["gpu"] for key in found["gpuwatch_gpu_power_watts"]] == ["1"]
    assert one(found, "gpu_info", gpu="0", uuid="GPU-0000") == 1


def test_details_are_left_out_until_asked_for(state, exporter):
    """And nothing else: the two documents differ in what the catalogue calls details."""
    whole(state, time.monotonic_ns())
    plain = {(family.metric.name, labels) for family in exporter.samples().families() for labels, _ in family.samples}
    exporter._config = with_layers(0, details=True)
    every = {(family.metric.name, labels) for family in exporter.samples().families() for labels, _ in family.samples}
    assert plain < every
    extra = every - plain
    assert {name for name, _ in extra if BY_METRIC[name].detail} == {metric.name for metric in METRICS if metric.detail}
    assert {(name, labels[-1]) for name, labels in extra if not BY_METRIC[name].detail} == DETAIL_VALUES


def test_while_paused_nothing_is_said_about_a_gpu_and_that_is_said(state, exporter):
    """A gpu_up of 0 would raise the alarm for a GPU that somebody is about to reset on purpose."""
    fill(state, gpus=1, now_ns=time.monotonic_ns())
    assert one(scrape(exporter), "sampling_state", state="sampling") == 1
    state.gpus.state, state.gpus.samplers = "paused", 0
    next(iter(state.gpus)).mark_down("sampling is paused")
    found = scrape(exporter)
    assert one(found, "sampling_state") == 1
    assert one(found, "sampling_state", state="paused") == 1
    assert one(found, "sampler_processes") == 0
    assert "gpuwatch_gpu_up" not in found
    assert one(found, "gpu_xid_last_timestamp_seconds", gpu="0", xid="79") == 1_700_000_000.5


def test_encoders_of_processes_that_never_use_them_take_no_series(state, exporter):
    fill(state, gpus=1, processes=3, now_ns=time.monotonic_ns())
    found = scrape(exporter)
    assert one(found, "gpu_process_encoder_utilization_ratio", pid="10000") == 0.25
    assert one(found, "gpu_process_decoder_utilization_ratio", pid="10000") == 0.5
    assert one(found, "gpu_process_info", pid="10001", kubernetes_pod="trainer-0", kubernetes_namespace="research") == 1


def test_processes_beyond_the_cap_are_summed(state, stats):
    config = Config(limits=Limits(process_rows=2))
    job = Job(state, pid=10_000)  # the smallest of all, but it trains
    fill(state, gpus=1, processes=5, now_ns=time.monotonic_ns())
    found = scrape(Prometheus(config, state, stats, "0", RULES))
    rows = {dict(key)["pid"]: value for key, value in found["gpuwatch_gpu_process_memory_bytes"].items()}
    assert rows == {"10000": 1 << 30, "10004": 5 << 30, "other": (2 + 3 + 4) << 30}
    assert one(found, "gpu_process_info", pid="10000", run="digits", rank="0") == 1
    assert one(found, "gpu_process_info", pid="10004", run="", rank="") == 1
    assert one(found, "train_info", gpu="0", pid="10000", precision="fp16") == 1
    assert one(found, "gpu_processes", gpu="0") == 5
    assert job.run.status == "live"


def test_layers_are_off_until_asked_for(state, stats, config):
    job = Job(state)
    job.step(1)
    assert "gpuwatch_train_layer_grad_norm" not in scrape(Prometheus(config, state, stats, "0", RULES))
    found = scrape(Prometheus(with_layers(2), state, stats, "0", RULES))
    assert {dict(key)["layer"]: value for key, value in found["gpuwatch_train_layer_grad_norm"].items()} == {
        "fc.weight": 3 + 1 / 64,
        "conv1.bias": 2 + 1 / 64,
    }


def test_of_the_layers_one_that_is_no_number_comes_first(state, stats, monkeypatch):
    monkeypatch.setattr("tests.exporters.job.layer_value", lambda step, layer, family, column: [1.0, math.nan, 2.0][layer])
    Job(state).step(1)
    found = scrape(Prometheus(with_layers(2), state, stats, "0", RULES))
    assert {dict(key)["layer"] for key in found["gpuwatch_train_layer_grad_norm"]} == {"conv1.bias", "fc.weight"}


def test_two_attempts_are_one_series(state, exporter):
    first = Job(state, world_size=2, pid=1)
    first.step(1)
    second = Job(state, world_size=2, pid=2)
    second.step(1)
    second.step(2)
    assert first.run.directory != second.run.directory
    assert one(scrape(exporter), "train_steps_total", run="digits", rank="0") == 2
    state.process_gone(first.run)
    assert one(scrape(exporter), "train_steps_total", run="digits", rank="0") == 2


def test_an_attempt_that_lives_is_shown_before_one_that_has_ended(state, exporter):
    first = Job(state, world_size=2, pid=1)
    first.step(1)
    second = Job(state, world_size=2, pid=2)
    second.step(1)
    second.step(2)
    state.process_gone(second.run)
    assert one(scrape(exporter), "train_steps_total", run="digits", rank="0") == 1


def test_a_run_that_has_ended_leaves_after_a_while(state, exporter, monkeypatch):
    job = Job(state)
    job.step(1)
    job.end(1)
    assert one(scrape(exporter), "train_steps_total") == 1
    monkeypatch.setattr(prometheus, "ENDED_SECONDS", -1.0)
    assert "gpuwatch_train_steps_total" not in scrape(exporter)


def test_components(state, exporter, stats):
    assert one(scrape(exporter), "up") == 1
    stats.fail("tensorboard", "No space left on device")
    found = scrape(exporter)
    assert one(found, "up") == 0
    assert one(found, "component_up", component="tensorboard") == 0
    assert one(found, "component_up", component="intake") == 1


def test_the_names_of_tensors_and_tags_arrive_whole(state, exporter):
    job = Job(state)
    tag = 'a"b\\c\nd é'
    job.scalar(tag, 1, 2.5)
    assert one(scrape(exporter), "train_scalar", tag=tag) == 2.5


def test_a_second_scrape_at_once_is_the_same_document(state, exporter):
    job = Job(state)
    job.step(1)
    first = exporter.document()
    job.step(2)
    assert exporter.document() is first


def test_gpus_are_shown_as_soon_as_they_are_there(state, exporter):
    assert b"gpuwatch_gpu_up" not in exporter.document()
    fill(state, gpus=1, now_ns=time.monotonic_ns())
    first = exporter.document()
    assert b'gpuwatch_gpu_up{gpu="0"} 1' in first
    assert exporter.document() is first


def test_the_budget_of_series_and_bytes(state, stats, config):
    rules = [*RULES, *(f"rule_that_is_to_come_{i}" for i in range(44 - len(RULES)))]  # the contract names 44
    exporter = Prometheus(config, state, stats, "0.1.0", rules)
    ranks = [4000 + rank for rank in range(8)]
    for rank, pid in enumerate(ranks):
        job = Job(
            state, "llama-pretraining-7b", rank=rank, world_size=8, pid=pid, layers=[f"layers.{i}.weight" for i in range(50)]
        )
        job.step(1)
        job.scalar("Accuracy/val", 1, 0.5)
    fill(state, gpus=8, processes=5, ranks=ranks, now_ns=time.monotonic_ns())
    document = exporter.document()
    series = [line for line in document.splitlines() if not line.startswith(b"#")]
    assert len(series) < 1500
    assert len(document) < 150_000
