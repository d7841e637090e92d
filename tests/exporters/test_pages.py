import json
import math
import time

import pytest

from gpuwatch.exporters.http import Response
from gpuwatch.exporters.pages import routes
from gpuwatch.exporters.request import Request
from gpuwatch.state import summary
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
    answer = get(pages, "/api/runs")
    assert answer.content_type == "application/json"
    (run,) = json.loads(answer.body)
    assert (run["run"], run["step"], run["values"]["loss"]) == ("digits", 1, "nan")
    assert summary.decode(json.dumps(run).encode()).directory == "digits"


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
