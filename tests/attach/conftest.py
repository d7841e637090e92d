"""Targets to attach to: real interpreters that run real loops, killed at the end whatever happened."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

TARGETS = Path(__file__).parent / "targets"


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
            env=environment | {"OMP_NUM_THREADS": "1"},
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


def until(condition, seconds=10.0):
    """Wait for a condition to hold; the last word is an assertion with what it returned."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"still {result!r} after {seconds} s"
        time.sleep(0.005)
    return result
