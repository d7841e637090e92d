import json
import math
import re
import time
from http.client import HTTPConnection

import msgspec
import pytest

from gpuwatch.config import Config
from gpuwatch.exporters import http, web_files
from gpuwatch.exporters.http import Response
from gpuwatch.exporters.pages import Pages
from gpuwatch.exporters.request import Request
from gpuwatch.state import summary
from gpuwatch.state.node_report import NodeReport
from tests.exporters.job import Job
from tests.exporters.node import fill
from tests.exporters.test_prometheus import finding
from tests.running_daemon import wait_until


@pytest.fixture
def web(state, stats):
    return Pages(state, stats, "0.1.0")


@pytest.fixture
def pages(web):
    metrics = Response(b"metrics")
    return web.routes(lambda _: metrics, ["loss_spike"], lambda name: f"# {name}")


def get(pages, path):
    path, _, query = path.partition("?")
    return pages[path](Request("GET", path, query, {}))


def test_every_file_of_the_page_is_served_as_what_it_is(pages):
    assert get(pages, "/").content_type == "text/html; charset=utf-8"
    assert get(pages, "/").body == (web_files.FOLDER / "index.html").read_bytes()
    assert get(pages, "/web/app.js").content_type == "text/javascript; charset=utf-8"
    assert get(pages, "/web/style.css").content_type == "text/css; charset=utf-8"
    assert b"MIT License" in get(pages, "/web/vendor/uplot/LICENSE").body
    served = {path.removeprefix("/web/") for path in pages if path.startswith("/web/")}
    assert served == {path.relative_to(web_files.FOLDER).as_posix() for path in web_files.FOLDER.rglob("*") if path.is_file()}


def test_the_page_has_no_script_and_no_style_of_its_own_and_names_no_other_host(pages):
    for path in web_files.FOLDER.glob("*"):
        if path.is_dir():
            continue
        text = path.read_text()
        assert not re.search(r"https?://|//[a-z0-9-]+\.[a-z]", text), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), path
    markup = (web_files.FOLDER / "index.html").read_text()
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", markup)


def test_files_are_read_when_they_are_asked_for_and_not_kept(pages, monkeypatch, tmp_path):
    (tmp_path / "index.html").write_text("before")
    monkeypatch.setattr(web_files, "FOLDER", tmp_path)
    handler = web_files.routes()["/"]
    assert handler(None).body == b"before"
    (tmp_path / "index.html").write_text("after")
    assert handler(None).body == b"after"


def test_what_the_page_asks_for(state, web, pages):
    job = Job(state, "digits", rank=1, world_size=2)
    job.step(1)
    job.step(2)
    fill(state, gpus=1, now_ns=time.monotonic_ns())
    assert json.loads(get(pages, "/api/live").body)["runs"][0]["directory"] == job.run.directory == "digits/rank1"
    assert json.loads(get(pages, "/api/run?run=digits/rank1&after=1").body)["curves"]["loss"]["steps"] == [2]
    assert json.loads(get(pages, "/api/layers?run=digits/rank1").body)["layers"]
    assert json.loads(get(pages, "/api/histogram?run=digits/rank1&layer=1").body)["name"] == job.layers[1]
    assert json.loads(get(pages, "/api/window").body) == {"seconds": [], "gpus": {}}
    web.turn()
    assert list(json.loads(get(pages, "/api/window").body)["gpus"]) == [gpu.uuid for gpu in state.gpus]
    stream = get(pages, "/api/events")
    assert stream.body.startswith(b"data: {")
    assert stream.events().startswith(b"data: {")


@pytest.mark.parametrize("query", ["", "run=", "run=../digits", "run=digits%2Frank1", "rank=digits/rank1", "run=digits"])
@pytest.mark.parametrize("path", ["/api/run", "/api/layers", "/api/histogram"])
def test_a_run_that_is_not_there(state, pages, path, query):
    Job(state, "digits", rank=1, world_size=2).step(1)
    assert get(pages, f"{path}?{query}").status == 404


def test_nothing_is_made_while_nobody_looks(state, web, pages, monkeypatch):
    """Of the real server, over its turns: the curves are fed, and that is all."""
    monkeypatch.setattr(http, "EVERY_SECONDS", 0.05)
    Job(state, "digits").step(1)
    server = http.HttpServer(Config(), ("127.0.0.1", 0), pages, web.turn)
    server.start()
    try:
        wait_until(lambda: len(web.window.curves()["seconds"]) >= 5)
        assert web.live.renderings == 0
        connection = HTTPConnection(*server.address, timeout=20)
        connection.request("GET", "/api/live")
        assert json.load(connection.getresponse())["runs"]
        connection.close()
        assert web.live.renderings == 1
        seen = len(web.window.curves()["seconds"])
        wait_until(lambda: len(web.window.curves()["seconds"]) >= seen + 5)
        assert web.live.renderings == 1
    finally:
        server.stop()


def test_a_histogram_of_a_layer_that_is_none(state, pages):
    Job(state, "digits").step(1)
    assert get(pages, "/api/histogram?run=digits&layer=3").status == 404
    assert get(pages, "/api/histogram?run=digits&layer=999999999999999999").status == 200, "no number: the first layer"


def test_the_text_of_a_rule(pages):
    answer = get(pages, "/rules/loss_spike")
    assert (answer.body, answer.content_type) == (b"# loss_spike", "text/markdown; charset=utf-8")
    assert "/rules/other" not in pages


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
