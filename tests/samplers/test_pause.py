"""pause and resume: nothing is asked, nothing is claimed, and with --release nobody of ours has the driver's library mapped."""

import os
import time
from pathlib import Path

import pytest

from gpuwatch.samplers import supervisor as supervisor_module
from tests.fake_nvml.driver import h100


def holders(fake, pids):
    """Which of these processes have the driver's library mapped, as `lsof` would tell."""
    library = str(fake.library_folder / "libnvidia-ml.so.1")
    found = []
    for pid in pids:
        try:
            maps = Path(f"/proc/{pid}/maps").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if library in maps:
            found.append(pid)
    return found


def descendants():
    """Every process below this one."""
    found = [os.getpid()]
    for pid in found:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found[1:]


def calls_to_devices(fake):
    return {name: count for name, count in fake.calls().items() if name.startswith("nvmlDeviceGet")}


def test_pause_asks_nothing_and_keeps_the_driver_open(sampled):
    run = sampled([h100()])
    (child,) = run.supervisor.child_pids()
    assert holders(run.fake, descendants()) == [child]
    run.supervisor.pause()
    assert run.gpus.state == "paused"
    assert not run.gpu(0).up
    run.turns(0.3)  # until the command has arrived
    before = calls_to_devices(run.fake)
    run.turns(1.5)
    assert calls_to_devices(run.fake) == before
    assert run.supervisor.child_pids() == [child]
    assert run.gpus.samplers == 1
    assert run.gpus.message == f"sampling is paused, the driver is held by process {child}"
    assert not run.gpu(0).up
    assert run.value(0, "power_watts") is None
    assert run.value(0, "energy_joules_total") > 0  # counters stay
    run.supervisor.resume()
    run.until(lambda: run.up(0))
    assert run.supervisor.child_pids() == [child]
    assert run.gpus.state == "sampling"


def test_a_pause_longer_than_any_deadline_is_no_hang(sampled, monkeypatch):
    run = sampled([h100()], deadline_seconds=0.5)
    (child,) = run.supervisor.child_pids()
    run.supervisor.pause()
    monkeypatch.setattr(supervisor_module, "START_SECONDS", 0.2)
    run.turns(2.0)
    monkeypatch.undo()
    assert run.supervisor.child_pids() == [child]
    assert run.gpus.state == "paused"
    run.supervisor.resume()
    run.until(lambda: run.up(0))


def test_release_lets_go_of_the_driver_and_resume_comes_back(sampled):
    run = sampled([h100(0), h100(1)])
    assert holders(run.fake, descendants())  # twin: there is something to let go of
    run.supervisor.pause(release=True)
    run.until(lambda: not run.supervisor.child_pids())
    assert holders(run.fake, descendants()) == []
    run.turns(0.5)
    assert run.supervisor.child_pids() == []
    assert run.gpus.message == "sampling is paused, the driver is released"
    assert run.gpus.samplers == 0
    run.supervisor.pause()  # a pause after a release takes nothing back
    run.turns(0.3)
    assert holders(run.fake, descendants()) == []
    run.supervisor.resume()
    run.until(lambda: run.up(0, 1))


def test_a_held_driver_is_released_when_asked_later(sampled):
    run = sampled([h100()])
    run.supervisor.pause()
    run.turns(0.3)
    assert len(run.supervisor.child_pids()) == 1
    run.supervisor.pause(release=True)
    run.until(lambda: not run.supervisor.child_pids())


def test_release_of_a_driver_that_hangs(sampled, monkeypatch):
    monkeypatch.setattr(supervisor_module, "SIDE_SECONDS", 0.5)
    run = sampled([h100(0), h100(1)])
    run.fake.gpus[0].faults.append("hang nvmlDeviceGetMemoryInfo_v2")
    run.fake.write()
    run.until(lambda: len(run.supervisor.child_pids()) == 2)
    run.supervisor.pause(release=True)
    run.turns(0.1)
    if run.supervisor.child_pids():
        assert "not released yet: held by process" in run.gpus.message  # not a word of success before it is one
    run.until(lambda: not run.supervisor.child_pids())
    run.fake.gpus[0].faults.clear()
    run.fake.write()
    run.supervisor.resume()
    run.until(lambda: run.up(0, 1))


@pytest.mark.parametrize("release", [False, True])
def test_nothing_of_the_time_before_a_pause_counts_as_after_it(sampled, release):
    """A pause is no time in which a GPU was busy, and the bus counters' difference does not span it."""
    gpu = h100()
    gpu.get("nvmlDeviceGetUtilizationRates", 100, 0)
    run = sampled([gpu])
    run.until(lambda: run.value(0, "busy_seconds_total") > 0.5)
    run.supervisor.pause(release=release)
    run.turns(0.3)
    before, began = run.value(0, "busy_seconds_total"), time.monotonic()
    run.turns(2.0)
    run.supervisor.resume()
    resumed = time.monotonic()
    run.until(lambda: run.up(0) and run.value(0, "busy_seconds_total") > before + 0.3)
    grown = run.value(0, "busy_seconds_total") - before
    assert grown <= time.monotonic() - resumed + 0.3 < time.monotonic() - began - 1.5
