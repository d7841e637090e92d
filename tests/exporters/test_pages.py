import json
import math
import time

import msgspec
import pytest

from gpuwatch.exporters.http import Response
from gpuwatch.exporters.pages import routes
from gpuwatch.exporters.request import Request
from gpuwatch.state import summary
from gpuwatch.state.node_report import NodeReport
from tests.exporters.job import Job
from tests.exporters.node import fill
from tests.exporters.test_prometheus import finding


@pytest.fixture
def pages(state, stats):
    return routes(state, stats, "0.1.0", lambda _: Response(b"metrics"), lambda: pages_reason[0])


pages_reason = [""]


def get(pages, path):
    return pages[path](Request("GET", path, "", {}))


def test_the_front_page_names_runs_findings_gpus_and_components(state, stats, pages):
    job = Job(state, "digits")
    job.step(12)
    state.find(job.run, finding())
    fill(state, gpus=2, now_ns=time.monotonic_ns())
    next(iter(state.gpus)).mark_down("lost")
    stats.fail("tensorboard", "No space left on device")
    page = get(pages, "/")
    text = page.body.decode()
    assert page.content_type.startswith("text/html")
    for part in (
        "digits",
        ">12<",
        "nonfinite_gradient",
        "down: lost",
        "H100",
        "down: No space left on device",
        'href="metrics"',
    ):
        assert part in text, part


def test_an_empty_daemon_has_a_page_too(pages):
    assert "none" in get(pages, "/").body.decode()


def test_names_of_the_job_are_text_on_the_page(state, pages):
    job = Job(state, "digits")
    job.step(1)
    state.find(job.run, finding(layer="x"))
    next(iter(state.findings.active.values())).summary = "<script>alert(1)</script> & more"
    text = get(pages, "/").body.decode()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in text


def test_runs_as_json_are_what_run_json_holds(state, pages):
    job = Job(state, "digits")
    job.step(1, loss=math.nan)
    broken = finding()
    broken.value = math.nan
    state.find(job.run, broken)
    answer = get(pages, "/api/runs")
    assert answer.content_type == "application/json"
    (run,) = json.loads(answer.body)
    assert (run["run"], run["step"], run["values"]["loss"]) == ("digits", 1, "nan")
    read_again = summary.decode(json.dumps(run).encode())
    assert read_again.directory == "digits"
    assert math.isnan(read_again.findings[0].value)


def test_gpus_as_json_with_their_processes_and_the_host(state, pages):
    job = Job(state, "digits")
    job.step(1)
    fill(state, gpus=2, processes=3, ranks=(job.run.identity.pid,), now_ns=time.monotonic_ns())
    list(state.gpus)[1].mark_down("lost")
    answer = get(pages, "/api/gpus")
    assert answer.content_type == "application/json"
    node = msgspec.json.decode(answer.body, type=NodeReport)
    first, second = node.gpus
    known = next(iter(state.gpus)).values
    assert first.values["temperature_celsius"]["core"] == known["temperature_celsius", (("sensor", "core"),)]
    assert set(first.values["ecc_errors_total"]) == {"corrected", "uncorrected"}
    assert first.values["memory_used_peak_bytes"] == dict.fromkeys(("10s", "60s", "300s"), 60 << 30)
    assert [(p.pid, p.run, p.rank) for p in first.processes if p.run] == [(job.run.identity.pid, "digits", "0")]
    assert (len(first.processes), first.processes[0].memory_bytes, first.processes[0].user) == (3, 1 << 30, "alice")
    assert (second.up, second.reason, second.processes) == (False, "lost", [])
    assert node.host.processes[job.run.identity.pid].resident_bytes == 4 << 30


def test_health(pages):
    assert get(pages, "/-/healthy").status == 200
    assert get(pages, "/-/ready").status == 200
    pages_reason[0] = "intake has not started"
    try:
        answer = get(pages, "/-/ready")
    finally:
        pages_reason[0] = ""
    assert (answer.status, answer.body) == (503, b"intake has not started\n")


def test_the_style_is_a_file_of_its_own_as_the_policy_wants(pages):
    assert get(pages, "/style.css").content_type.startswith("text/css")
    assert "<style" not in get(pages, "/").body.decode()
    assert "style=" not in get(pages, "/").body.decode()
