"""The page of a run: curves behind a step, layers, the histogram of one."""

import json
import math

import pytest

from gpuwatch.exporters import run_page
from tests.exporters.job import LAYERS, Job, bucket, layer_value, learning_rate, step_values
from tests.exporters.test_prometheus import finding


@pytest.fixture
def job(state):
    job = Job(state, "digits")
    for step in range(1, 6):
        job.step(step)
    return job


def curves(state, after=0):
    return json.loads(run_page.curves(state, "digits", after))


def test_curves_over_the_window(state, job):
    told = curves(state)
    assert told["curves"]["loss"] == {
        "steps": [1, 2, 3, 4, 5],
        "values": [pytest.approx(step_values(step)["loss"], rel=1e-5) for step in range(1, 6)],
    }
    assert told["curves"]["learning_rate"]["values"] == [learning_rate(step) for step in range(1, 6)]
    assert told["curves"]["grad_norm_clipped"]["values"] == [1.0] * 5
    assert (told["step"], told["window_steps"], told["facts"]["told"]["precision"]) == (5, 1024, "fp16")


def test_only_what_is_new(state, job):
    job.step(6, loss=math.nan)
    told = curves(state, after=4)
    assert told["curves"]["loss"]["steps"] == [5, 6]
    assert told["curves"]["loss"]["values"][1] is None, "measured, and not finite"
    assert curves(state, after=6)["curves"]["loss"] == {"steps": [], "values": []}


def test_findings_open_and_closed(state, job):
    broken = finding()
    broken.value = math.inf
    state.find(job.run, broken)
    (told,) = curves(state)["findings"]
    assert (told["rule"], told["value"], told["state"]) == ("nonfinite_gradient", "inf", "active")
    broken.state = "closed"
    state.find(job.run, broken)
    assert [known["state"] for known in curves(state)["findings"]] == ["closed"]


def test_layers(state, job):
    told = json.loads(run_page.table(state, "digits"))
    assert (told["step"], told["measured_step"]) == (5, 5)
    assert [row[:3] for row in told["layers"]] == [[index, name, 64] for index, name in enumerate(LAYERS)]
    for row in told["layers"]:
        layer = row[0]
        gradient = [layer_value(5, layer, "gradient", name) for name in ("norm", "absmax", "zero_ratio", "nonfinite_count")]
        weight, update = layer_value(5, layer, "weight", "norm"), layer_value(5, layer, "update", "norm")
        assert row[3:] == [pytest.approx(value, rel=1e-5) for value in (*gradient, weight, update / weight)]


def test_a_histogram(state, job):
    told = json.loads(run_page.histogram(state, "digits", 2))
    assert told["name"] == LAYERS[2]
    assert set(told["families"]) == {"gradient", "weight"}
    assert told["families"]["weight"]["counts"] == [bucket(5, 2, index) for index in range(64)]
    assert told["families"]["weight"]["step"] == 5


def test_what_is_not_there(state, job):
    assert run_page.curves(state, "other", 0) is None
    assert run_page.table(state, "../digits") is None
    assert run_page.histogram(state, "digits", 3) is None
    assert run_page.histogram(state, "digits", -1) is None


def test_a_run_without_layers_has_an_empty_table(state):
    Job(state, "bare").step(1, tables=False)
    assert json.loads(run_page.table(state, "bare"))["layers"] == []
