"""`gpuwatch pause` and `resume` against a real daemon over the fake driver; doctor and /metrics tell the truth meanwhile."""

import json
import os
from pathlib import Path

import pytest

from tests.fake_nvml.driver import FakeDriver, h100
from tests.running_daemon import RunningDaemon, wait_until


def series(daemon, name):
    return {key: value for key, value in daemon.metrics().items() if key.startswith(f"gpuwatch_{name}")}


def driver_holders(fake, pid):
    """The processes from `pid` down that have the driver's library mapped."""
    library = str(fake.library_folder / "libnvidia-ml.so.1")
    tree = [pid]
    for each in tree:
        for task in Path(f"/proc/{each}/task").iterdir():
            tree += map(int, (task / "children").read_text().split())
    return [each for each in tree if library in Path(f"/proc/{each}/maps").read_text()]


@pytest.fixture
def fake(tmp_path):
    return FakeDriver(tmp_path, [h100(0), h100(1)])


@pytest.fixture
def daemon(tmp_path, fake):
    with RunningDaemon(tmp_path, environ=fake.environment, sampling__gpus=True) as daemon:
        wait_until(lambda: series(daemon, "gpu_up") == {'gpuwatch_gpu_up{gpu="0"}': 1, 'gpuwatch_gpu_up{gpu="1"}': 1}, 60)
        yield daemon


def test_the_whole_way(gpuwatch, daemon, fake, environ):
    environ = {**environ, "GPUWATCH_SOCKET": str(daemon.socket), **fake.environment}
    (child,) = driver_holders(fake, daemon.process.pid)

    def sampling_check():
        rows = json.loads(gpuwatch("doctor", "--json", env=environ).stdout)
        return next(row for row in rows if row["check"] == "sampling")

    assert sampling_check()["detail"] == f"the daemon at {daemon.socket} samples, by process {child}"

    paused = gpuwatch("pause", env=environ)
    assert paused.returncode == 0, paused
    assert paused.stdout == f"{daemon.socket}: sampling is paused, the driver is held by process {child}\n"
    wait_until(lambda: series(daemon, "sampling_state") == {'gpuwatch_sampling_state{state="paused"}': 1})
    assert series(daemon, "gpu_up") == {}
    assert series(daemon, "sampler_processes") == {"gpuwatch_sampler_processes": 1}
    assert sampling_check()["state"] == "note"
    assert sampling_check()["fix"] == "gpuwatch resume"
    assert series(daemon, "up") == {"gpuwatch_up": 1}  # the daemon does what it was told

    released = json.loads(gpuwatch("pause", "--release", "--json", env=environ).stdout)
    assert [one["processes"] for one in released] == [[]]
    assert driver_holders(fake, daemon.process.pid) == []
    wait_until(lambda: series(daemon, "sampler_processes") == {"gpuwatch_sampler_processes": 0})
    assert sampling_check()["detail"] == f"the daemon at {daemon.socket}: sampling is paused, the driver is released"

    node = json.loads(gpuwatch("top", "--once", "--json", env=environ).stdout)
    assert node["state"] == "paused"
    assert "sampling is paused" in gpuwatch("top", "--once", env=environ).stdout

    resumed = gpuwatch("resume", env=environ)
    assert (resumed.returncode, resumed.stdout) == (0, f"{daemon.socket}: sampling\n")
    wait_until(lambda: len(series(daemon, "gpu_up")) == 2)
    assert driver_holders(fake, daemon.process.pid)


def test_a_release_that_the_driver_holds_up_is_no_success(gpuwatch, daemon, fake, environ):
    """The wait is over before the kill of a child that hangs (two seconds): exit 1, and the truth."""
    fake.gpus[0].faults.append("hang nvmlDeviceGetMemoryInfo_v2")
    fake.write()
    environ = {**environ, "GPUWATCH_SOCKET": str(daemon.socket)}
    early = gpuwatch("pause", "--release", "--timeout", "0.1", env=environ)
    assert early.returncode == 1
    assert "sampling is paused, the driver is not released yet: held by process" in early.stdout
    later = gpuwatch("pause", "--release", env=environ)
    assert later.returncode == 0
    assert "the driver is released" in later.stdout
    assert driver_holders(fake, daemon.process.pid) == []


def test_without_a_daemon_and_without_sampling(gpuwatch, tmp_path, environ):
    result = gpuwatch("pause", env={**environ, "GPUWATCH_SOCKET": str(tmp_path / "none")})
    assert result.returncode == 1
    assert "no gpuwatch daemon of yours answers" in result.stderr
    with RunningDaemon(tmp_path) as daemon:
        refused = gpuwatch("resume", env={**environ, "GPUWATCH_SOCKET": str(daemon.socket)})
    assert refused.returncode == 1
    assert "this daemon does not sample GPUs" in refused.stdout


@pytest.mark.parametrize(("library", "reason"), [(False, "NVML Shared Library Not Found"), (True, "Driver Not Loaded")])
def test_doctor_says_why_no_gpu_is_sampled(gpuwatch, tmp_path, fake, environ, library, reason):
    fake.faults.append("error nvmlInitWithFlags 9")
    fake.write()
    found = fake.environment if library else {"LD_LIBRARY_PATH": str(tmp_path)}
    rows = {row["check"]: row for row in json.loads(gpuwatch("doctor", "--json", env={**environ, **found}).stdout)}
    assert rows["driver"]["state"] == "note"
    assert reason in rows["driver"]["detail"]
    assert rows["driver"]["fix"]
    with RunningDaemon(tmp_path, environ={**os.environ, **found}, sampling__gpus=True) as daemon:
        wait_until(lambda: series(daemon, "sampling_state") == {'gpuwatch_sampling_state{state="absent"}': 1}, 60)
        assert series(daemon, "host_memory_size_bytes")  # everything else works
        told = gpuwatch("doctor", "--json", env={**environ, **found, "GPUWATCH_SOCKET": str(daemon.socket)}).stdout
        assert reason in next(row["detail"] for row in json.loads(told) if row["check"] == "sampling")
