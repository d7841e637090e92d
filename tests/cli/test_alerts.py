"""`gpuwatch alerts` on runs that a real State recorded: what is listed, in which order, and what is followed."""

import json
import math
import re
import signal
import subprocess
import sys
import time

import msgspec
import pytest

from tests.cli.test_runs_status import GONE, finding

CONTRACT = "rule severity run rank step first_step last_step time layer value threshold summary action state".split()


def said(result):
    """The facts that tests look at, of each object."""
    return [(row["run"], row["rule"], row["step"], row["state"]) for row in json.loads(result.stdout)]


@pytest.fixture
def two_runs(recorder):
    recorder.run("early", finding=finding(time=100.0, layer="fc.weight"))
    recorder.run("late", ending=None, rank=1, world_size=2, finding=finding(rule="loss_spike", step=2, time=200.0))
    return recorder


def test_every_finding_newest_last_with_the_keys_of_the_contract(gpuwatch, two_runs):
    result = gpuwatch("alerts", "--json")
    rows = json.loads(result.stdout)
    assert said(result) == [("early", "exploding_gradient", 3, "closed"), ("late", "loss_spike", 2, "active")]
    assert all(list(row) == CONTRACT for row in rows)
    assert rows[1] | {"time": 0} == rows[1] | {"rank": 1, "severity": "critical", "value": 90.0, "threshold": 10.0, "time": 0}
    assert said(gpuwatch("alerts", "early", "--json")) == [("early", "exploding_gradient", 3, "closed")]


def test_what_a_person_reads(gpuwatch, two_runs):
    lines = gpuwatch("alerts").stdout.splitlines()
    assert len(lines) == 6
    assert re.fullmatch(r"1970-01-01 \d\d:\d\d:40  early  step 3  closed \(steps 2 to 3\)", lines[0])
    assert lines[1] == "    critical  exploding_gradient in fc.weight, from step 2: The norm is 90."
    assert lines[2].strip() == "Clip gradients."
    assert lines[3].endswith("  late/rank1  step 2  active")


def test_colours_only_where_they_are_wanted(gpuwatch, two_runs, environ):
    assert "\x1b[33m" not in gpuwatch("alerts").stdout
    assert "\x1b[31m" in gpuwatch("alerts", env={**environ, "FORCE_COLOR": "1"}).stdout
    assert "\x1b" not in gpuwatch("alerts", env={**environ, "FORCE_COLOR": "1", "NO_COLOR": "1"}).stdout


def test_a_run_that_was_lost_with_its_daemon_has_no_active_finding(gpuwatch, recorder):
    recorder.run("killed", ending=None, identity=GONE, finding=finding())
    assert said(gpuwatch("alerts", "--json")) == [("killed", "exploding_gradient", 3, "closed")]


def test_a_value_that_is_no_number_is_json_all_the_same(gpuwatch, recorder):
    recorder.run("broken", finding=finding(value=math.nan, threshold=math.inf))
    (row,) = json.loads(gpuwatch("alerts", "--json").stdout, parse_constant=pytest.fail)
    assert (row["value"], row["threshold"]) == ("nan", "inf")
    (rank,) = json.loads(gpuwatch("status", "--json").stdout, parse_constant=pytest.fail)["ranks"]
    assert rank["findings"][0]["value"] == "nan"


def test_nothing_found(gpuwatch, recorder):
    recorder.run("fine")
    result = gpuwatch("alerts")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "no findings in runs\n")
    assert json.loads(gpuwatch("alerts", "--json").stdout) == []
    result = gpuwatch("alerts", "fien")
    assert result.returncode == 2
    assert result.stderr.endswith("no run 'fien' in runs; did you mean 'fine'?\n")


@pytest.fixture
def following(tmp_path, environ):
    """following("--json") -> a function that reads the next object of `gpuwatch alerts --follow`, and the process."""
    started = []

    def start(*arguments):
        command = [sys.executable, "-m", "gpuwatch", "alerts", "--follow", "--json", *arguments]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process, lambda: json.loads(process.stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=20)


def test_a_finding_is_followed_from_its_opening_to_its_end(following, recorder):
    run = recorder.run("digits", ending=None, finding=finding(severity="info"))
    process, heard = following("digits")
    assert heard()["state"] == "active"
    recorder.state.find(run, finding(severity="critical"))
    recorder.state.save(run)
    row = heard()
    assert (row["state"], row["severity"]) == ("active", "critical")
    closed = finding(severity="critical", state="closed", last_step=9)
    recorder.state.find(run, closed)
    recorder.state.find(run, msgspec.structs.replace(closed, rule="loss_spike", state="active", time=1.0))
    recorder.state.save(run)
    rows = {row["rule"]: row["state"] for row in (heard(), heard())}
    assert rows == {"exploding_gradient": "closed", "loss_spike": "active"}
    assert process.poll() is None


def test_following_everything_ends_with_an_interrupt_and_not_before(following, recorder):
    recorder.run("one", finding=finding())
    process, heard = following()
    assert heard()["run"] == "one"
    recorder.run("two", finding=finding())
    assert heard()["run"] == "two"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert process.stderr.read() == ""


def test_following_a_run_that_has_ended_tells_all_and_ends(gpuwatch, two_runs):
    result = gpuwatch("alerts", "early", "--follow", "--json")
    assert result.returncode == 0
    assert [json.loads(line)["rule"] for line in result.stdout.splitlines()] == ["exploding_gradient"]
