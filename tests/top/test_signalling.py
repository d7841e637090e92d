"""A signal goes to the process that was shown, and to no other."""

import dataclasses
import signal
import subprocess
from pathlib import Path

import pytest

from gpuwatch.top import signalling
from gpuwatch.top.process_rows import ProcessRow


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait(20)


@pytest.fixture
def row(sleeper):
    ticks = int(Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()[19])
    return ProcessRow("0", sleeper.pid, ticks, "root", "sleep", "", None, None, None, None, None)


def test_the_signal_arrives(sleeper, row):
    assert signalling.send(row, signal.SIGTERM) == ""
    assert sleeper.wait(20) == -signal.SIGTERM
    assert signalling.send(row, signal.SIGTERM) == f"{row.pid} (sleep) has ended"


def test_a_pid_that_is_another_process_now_is_left_alone(sleeper, row):
    told = signalling.send(dataclasses.replace(row, start_ticks=row.start_ticks - 1), signal.SIGKILL)
    assert told.startswith(f"not sent: {row.pid} is not sleep any more")
    assert "not known when" in signalling.send(dataclasses.replace(row, start_ticks=0), signal.SIGKILL)
    assert sleeper.poll() is None
