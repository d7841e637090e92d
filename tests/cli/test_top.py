"""`gpuwatch top --once` and `--json`, and what it says when the live view cannot be."""

import json
import subprocess
import sys

import pytest

from tests.cli.conftest import ROOT
from tests.cli.test_runs_status import finding
from tests.fake_nvml.driver import FakeDriver, h100

WITHOUT_TEXTUAL = """
import sys
for name in ("textual", "rich"):
    sys.modules[name] = None
from gpuwatch.cli import main
main(sys.argv[1:])
"""


@pytest.fixture
def driver(tmp_path, environ):
    """The environment with a driver of two GPUs in it."""
    gpus = [h100(0), h100(1)]
    gpus[1].faults.append("error * 15")
    return {**environ, **FakeDriver(tmp_path, gpus).environment}


def test_once_without_a_daemon(gpuwatch, recorder, driver):
    recorder.run("digits", steps=7, ending=None, finding=finding())
    result = gpuwatch("top", "--once", env=driver)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "no daemon answers: top samples by itself" in lines[0]
    assert "\x1b" not in result.stdout
    assert lines[2].split()[0] == "0"
    assert "79.6G" in lines[2]
    assert "down: GPU is lost" in lines[3]
    row = next(line for line in lines if line.startswith("digits"))
    assert row.split()[1:3] == ["live", "7"]
    assert "  ! exploding_gradient from step 2: The norm is 90." in lines
    assert max(map(len, lines)) <= 120
    narrow = gpuwatch("top", "--once", env={**driver, "COLUMNS": "60"}).stdout
    assert max(map(len, narrow.splitlines())) <= 60
    assert "\x1b[" in gpuwatch("top", "--once", env={**driver, "FORCE_COLOR": "1"}).stdout


def test_json(gpuwatch, recorder, driver):
    recorder.run("digits", steps=7, ending=None, fields={"grad_norm": float("inf")})
    tree = json.loads(gpuwatch("top", "--json", env=driver).stdout, parse_constant=pytest.fail)
    assert (tree["source"], tree["state"], [gpu["up"] for gpu in tree["gpus"]]) == ("top", "sampling", [True, False])
    assert tree["gpus"][0]["values"]["power_limit_watts"] == 700
    assert 0 <= tree["host"]["cpu_utilization_ratio"] <= 1
    (job,) = tree["jobs"]
    assert (job["run"], job["step"], job["grad_norm"]) == ("digits", 7, "inf")


def test_without_a_gpu_it_says_why_and_shows_the_rest(gpuwatch, recorder, environ):
    recorder.run("digits", ending=None)
    out = gpuwatch("top", "--once", "--logdir", recorder.logdir, env={**environ, "LD_LIBRARY_PATH": ""}).stdout
    assert "RAM " in out
    assert "digits" in out
    if "no GPU" in out:  # a machine with a driver has one
        assert "no GPU: no NVIDIA driver here" in out


def test_the_live_view_needs_textual_and_says_how_to_get_it(tmp_path, environ):
    def call(*arguments):
        command = [sys.executable, "-c", WITHOUT_TEXTUAL, "top", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)

    result = call()
    assert result.returncode == 1
    assert result.stderr == (
        "Error: the live view needs Textual, which is not installed here: pip install 'textual>=8.2,<9' brings it; "
        "gpuwatch top --once and --json work without it\n"
    )
    assert call("--once").returncode == 0
    assert call("--json").returncode == 0
    assert "textual>=" in (ROOT / "pyproject.toml").read_text()


def test_the_live_view_needs_a_terminal(gpuwatch):
    result = gpuwatch("top")
    assert result.returncode == 2
    assert result.stderr.endswith("the live view needs a terminal; --once and --json print what there is now\n")
