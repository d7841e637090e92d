"""What the page is told each second: everything that `top` shows, made once for all who ask."""

import json
import math
import time

import pytest

from gpuwatch.exporters import run_page
from gpuwatch.exporters.live import Live
from gpuwatch.state.store import State
from tests.exporters.job import Job
from tests.exporters.node import fill
from tests.exporters.test_prometheus import finding


@pytest.fixture
def live(state, stats):
    return Live(state, stats, "0.1.0")


def told(live):
    live._made_at = -1e9
    return json.loads(live.snapshot())


def test_gpus_with_their_processes_and_peaks(state, live):
    fill(state, gpus=2, processes=3, now_ns=time.monotonic_ns())
    list(state.gpus)[1].mark_down("lost")
    snapshot = told(live)
    first, second = snapshot["gpus"]
    known = next(iter(state.gpus)).values
    assert first["values"]["power_watts"] == known["power_watts", ()]
    assert first["values"]["temperature_celsius"]["core"] == known["temperature_celsius", (("sensor", "core"),)]
    assert first["values"]["clock_hertz"]["sm"] == known["clock_hertz", (("domain", "sm"),)]
    assert first["values"]["throttle_active"]["power_cap"] == known["throttle_active", (("reason", "power_cap"),)]
    assert first["values"]["memory_used_peak_bytes"]["300s"] == first["memory_second_peak_bytes"] == 60 << 30
    uncorrected = ("ecc_errors_total", (("severity", "uncorrected"), ("lifetime", "aggregate")))
    assert first["values"]["ecc_uncorrected_total"] == known[uncorrected]
    assert [process["memory_bytes"] >> 30 for process in first["processes"]] == [1, 2, 3]
    assert (second["up"], second["reason"], second["processes"]) == (False, "lost", [])
    assert "power_watts" not in second["values"]
    assert snapshot["host"]["memory_size_bytes"] == 512 << 30


def test_a_run_with_its_findings_and_what_is_not_finite(state, live):
    job = Job(state, "digits")
    job.step(1)
    job.step(2, loss=math.nan, grad_norm=math.inf)
    state.find(job.run, finding())
    (run,) = told(live)["runs"]
    assert (run["run"], run["status"], run["step"], run["pid"]) == ("digits", "live", 2, job.run.identity.pid)
    assert (run["values"]["loss"], run["values"]["grad_norm"]) == ("nan", "inf")
    assert run["steps_per_second"] == 8.0
    assert run["learning_rate"] == 0.5
    assert sum(run["phase_seconds"].values()) == 0.25
    assert [(known["rule"], known["severity"], bool(known["action"])) for known in run["findings"]] == [
        ("nonfinite_gradient", "critical", True)
    ]


def test_components_that_are_down_are_named(stats, live):
    stats.beat("intake")
    stats.fail("tensorboard", "No space left on device")
    assert told(live)["components"] == {"tensorboard": "No space left on device"}


def test_it_is_made_once_for_all_who_ask_within_a_moment(live):
    assert live.renderings == 0
    assert len({live.snapshot() for _ in range(50)} | {live.event()[6:-2] for _ in range(50)}) == 1
    assert live.renderings == 1
    told(live)
    assert live.renderings == 2


def test_the_last_words_of_a_run_that_ended_are_said_once_and_kept(state, live):
    job = Job(state, "digits")
    job.step(3)
    told(live)
    job.end(3)
    (run,) = told(live)["runs"]
    assert (run["status"], run["step"]) == ("finished", 3)
    kept = live._ended["digits"]
    told(live)
    assert live._ended["digits"] is kept
    del state.runs["digits"]
    assert told(live)["runs"] == []
    assert live._ended == {}


def test_an_event_is_one_line_of_data(state, live):
    job = Job(state, "digits")
    job.step(1)
    broken = finding()
    broken.summary = "two\nlines\r\nand more"
    state.find(job.run, broken)
    event = live.event()
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    assert b"\r" not in event


def test_a_log_directory_that_is_no_utf8(tmp_path, stats):
    state = State(str(tmp_path / "r\udcffuns"))
    assert told(Live(state, stats, "0.1.0"))["daemon"]["logdir"].endswith("/r?uns")
    Job(state, "digits").step(1)
    assert json.loads(run_page.curves(state, "digits", 0))["facts"]["log"].endswith("/r?uns/digits")
    state.close()
