"""Targets to attach to: real interpreters that run real loops, killed at the end whatever happened."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.running_daemon import PATIENCE, RunningDaemon

TARGETS = Path(__file__).parent / "targets"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    """A real daemon for all tests of a file."""
    with RunningDaemon(tmp_path_factory.mktemp("daemon")) as running:
        yield running


def ask(target, word):
    """The answer of targets/trains.py to a command."""
    target.stdin.write(word + "\n")
    target.stdin.flush()
    return json.loads(target.stdout.readline())


def run_of(target, daemon):
    """The newest run.json of this process."""
    found = [run for run in daemon.runs().values() if run.identity.pid == target.pid]
    return max(found, key=lambda run: run.started_wall_seconds, default=None)


@pytest.fixture
def launch():
    """`launch(script, *arguments, python=...)` starts a target and returns it once it has printed "ready"."""
    started = []

    def start(script, *arguments, python=sys.executable, wait=True, **options):
        command = [str(python), str(TARGETS / script), *map(str, arguments)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("GPUWATCH", "PYTHON"))}
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"OMP_NUM_THREADS": "1", "TEST_PATIENCE": str(PATIENCE)},
            **options,
        )
        started.append(process)
        if wait:
            assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=10)


def until(condition, seconds=40.0):
    """Wait for a condition to hold; the last word is an assertion with what it returned."""
    deadline = time.monotonic() + seconds * PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, f"still {result!r} after {seconds} s"
        time.sleep(0.005)
    return result
