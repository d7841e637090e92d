"""Where readings come from: a real daemon over the fake driver, one that goes and comes back, and none at all."""

import os
import signal
import time

import pytest

from gpuwatch.top import daemons, feed
from gpuwatch.top.feed import Feed
from tests.fake_nvml.driver import FakeDriver, h100
from tests.running_daemon import RunningDaemon, wait_until
from tests.test_imports import subprocess_client


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where the daemon of a test listens and top looks; with a driver of two GPUs for whoever samples."""
    fake = FakeDriver(tmp_path, [h100(0), h100(1)])
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    for name, value in {**fake.environment, "XDG_RUNTIME_DIR": str(runtime)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GPUWATCH_SOCKET", str(tmp_path / "gpuwatch.sock"))
    return tmp_path


@pytest.fixture
def fed(place):
    """fed(...) -> a Feed, closed at the end."""
    made = []

    def make(jobs=(), **options):
        made.append(Feed(lambda: list(jobs), **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def turned(source, condition, seconds=60.0):
    """Turns of the feed until `condition(reading)`; the reading."""

    def turn():
        source.turn(period_seconds=0.1)
        time.sleep(0.02)
        return source.reading if source.reading is not None and condition(source.reading) else None

    return wait_until(turn, seconds)


def test_the_daemon_gives_gpus_processes_jobs_and_the_host(place, fed):
    with RunningDaemon(place, sampling__gpus=True) as daemon:
        assert subprocess_client(daemon).wait(60) == 0
        reading = turned(fed(), lambda reading: len(reading.node.gpus) == 2 and reading.jobs and reading.node.host)
        assert (reading.source, reading.note, reading.stale) == ("daemon", f"daemon {daemon.process.pid}", False)
        assert reading.node.gpus[0].values["power_limit_watts"] == 700
        assert {job.summary.run for job in reading.jobs} == {known.run for known in daemon.runs().values()}


def test_a_daemon_that_is_restarted_is_waited_for_and_found_again(place, fed, monkeypatch):
    monkeypatch.setattr(feed, "PATIENCE_SECONDS", 60.0)
    source = fed()
    with RunningDaemon(place, sampling__gpus=True) as first:
        turned(source, lambda reading: len(reading.node.gpus) == 2)
        first.end()
    stale = turned(source, lambda reading: reading.stale)
    assert len(stale.node.gpus) == 2
    assert "does not answer" in stale.note
    with RunningDaemon(place, sampling__gpus=True) as second:
        again = turned(source, lambda reading: not reading.stale and len(reading.node.gpus) == 2)
        assert again.note == f"daemon {second.process.pid}"


def test_without_a_daemon_it_samples_by_itself_until_there_is_one(place, fed, trained):
    source = fed(trained.jobs)
    own = turned(source, lambda reading: len(reading.node.gpus) == 2 and all(gpu.up for gpu in reading.node.gpus))
    assert (own.source, own.note) == ("top", "no daemon answers: top samples by itself")
    assert [job.summary.run for job in own.jobs] == ["digits"]
    assert own.node.host.processes[trained.trainer_pid].resident_bytes > 0
    assert _nvml_children() == 1
    with RunningDaemon(place, sampling__gpus=True):
        turned(source, lambda reading: reading.source == "daemon")
        assert _nvml_children() == 0, "two children would ask the driver everything twice"


def test_a_daemon_that_hangs_is_given_up(place, fed, monkeypatch):
    monkeypatch.setattr(feed, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(daemons, "TIMEOUT_SECONDS", 0.3)
    source = fed()
    with RunningDaemon(place, sampling__gpus=True) as daemon:
        turned(source, lambda reading: len(reading.node.gpus) == 2)
        daemon.signal(signal.SIGSTOP)
        turned(source, lambda reading: reading.source == "top" and len(reading.node.gpus) == 2)
        daemon.signal(signal.SIGCONT)
        turned(source, lambda reading: reading.source == "daemon" and not reading.stale)


def test_runs_below_another_directory_come_from_there_and_gpus_from_the_daemon(place, fed, trained):
    with RunningDaemon(place, sampling__gpus=True) as daemon:
        assert subprocess_client(daemon).wait(60) == 0
        source = fed(trained.jobs, logdir=place / "elsewhere")
        reading = turned(source, lambda reading: len(reading.node.gpus) == 2)
        assert (reading.source, [job.summary.run for job in reading.jobs]) == ("daemon", ["digits"])


def test_a_private_daemon_of_a_run_is_found_too(place, fed, monkeypatch):
    folder = place / "private"
    folder.mkdir()
    with RunningDaemon(folder, sampling__gpus=False, daemon__socket=str(place / "run-abc.sock")) as daemon:
        reading = turned(fed(), lambda reading: reading.source == "daemon")
        assert reading.note == f"daemon {daemon.process.pid}"
        assert reading.node.state == "off"
        daemon.kill()
        assert daemons.announced() == [], "it left its announcement behind, and is gone"


def _nvml_children():
    children = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            children += file.read().split()
    commands = []
    for pid in children:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                commands.append(file.read())
        except FileNotFoundError:
            continue
    return sum(b"nvml_worker" in command for command in commands)
