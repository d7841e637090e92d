"""The wall clock steps by an hour under the daemon, forth and back: order and durations do not notice."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.conftest import journal
from tests.running_daemon import RunningDaemon, wait_until


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    library = tmp_path_factory.mktemp("shim") / "clock_shim.so"
    source = Path(__file__).parent / "clock_shim.c"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, source, "-ldl"], check=True, timeout=60
    )
    return library


def test_steps_of_the_wall_clock(tmp_path, shim, start_trainer):
    clock = tmp_path / "clock"
    clock.write_text("0")
    environ = {"LD_PRELOAD": str(shim), "GPUWATCH_TEST_CLOCK": str(clock)}
    with RunningDaemon(tmp_path, environ=environ) as daemon:
        trainer = start_trainer(900, 300)
        began = time.time()
        for number, shift in enumerate([3600, -3600, 0], start=1):
            wait_until(lambda: daemon.runs().get("chaos") and daemon.runs()["chaos"].step >= 200 * number)  # noqa: B023
            clock.write_text(str(shift))
        trainer.result()
        run = wait_until(lambda: (run := daemon.runs()["chaos"]).status == "finished" and run)
        ended = time.time()
        metrics = daemon.metrics()
        assert daemon.end() == 0
    assert (run.step, run.counters.steps) == (900, 900)
    assert not {reason: count for reason, count in run.counters.dropped.items() if count}
    times = [frame.monotonic_ns for frame in journal(tmp_path / "runs" / "chaos") if not frame.is_control]
    assert times == sorted(times)
    walls = event_times(tmp_path / "runs" / "chaos")
    assert len(walls) >= 900
    assert walls == sorted(walls), "a negative duration"
    assert began - 5 <= walls[0]
    assert walls[-1] <= ended + 5
    last = metrics['gpuwatch_train_last_step_timestamp_seconds{run="chaos",rank="0"}']
    assert began - 5 <= last <= ended + 5


def event_times(directory):
    """The wall times of the points of train/loss, in the order of the file."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    times = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            times += [event.wall_time for value in event.summary.value if value.tag == "train/loss"]
    return times


def test_the_shim_does_shift(tmp_path, shim):
    """Without this the test above would pass with a shim that does nothing."""
    clock = tmp_path / "clock"
    clock.write_text("3600")
    command = [sys.executable, "-c", "import time; print(time.time(), time.monotonic())"]
    environ = {"LD_PRELOAD": str(shim), "GPUWATCH_TEST_CLOCK": str(clock)}
    wall, monotonic = subprocess.run(command, env=environ, capture_output=True, check=True, timeout=60).stdout.split()
    assert float(wall) - time.time() == pytest.approx(3600, abs=30)
    assert float(monotonic) - time.monotonic() == pytest.approx(0, abs=30)
