"""Promise D8: a GPU that is lost, a driver that is reloaded, replaced or absent, calls that never return.

The numbers are the promise's, plus what a busy machine adds: down within one period (1 s), the others unaffected, back within
one period, a hang reported within 10 s. Twins show what happens to who asks in his own process.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from gpuwatch.samplers import supervisor as supervisor_module
from gpuwatch.samplers.nvml_child import NvmlChild
from tests.fake_nvml.driver import h100, mig_h100
from tests.fake_nvml.pynvml_process import PynvmlProcess

PERIOD_SECONDS = 1.0
HANG_SECONDS = 10.0


@pytest.fixture
def quick(monkeypatch):
    """Sends a stuck child aside after half a second instead of two, and takes it back sooner."""
    monkeypatch.setattr(supervisor_module, "SIDE_SECONDS", 0.5)
    monkeypatch.setattr(supervisor_module, "CALM_SECONDS", 1.0)


def break_gpu(run, index, fault):
    run.fake.gpus[index].faults.append(fault)
    run.fake.write()


def mend(run):
    run.fake.faults.clear()
    for gpu in run.fake.gpus:
        gpu.faults.clear()
    run.fake.write()


@pytest.mark.parametrize("code", [15, 999])
def test_a_lost_gpu_is_down_alone_and_comes_back(sampled, code):
    run = sampled([h100(0), h100(1), h100(2)])
    child = run.supervisor.child_pids()
    break_gpu(run, 1, f"error * {code}")
    _, seconds = run.until(lambda: not run.gpu(1).up)
    assert seconds < PERIOD_SECONDS + run.busy_seconds
    assert "lost" in run.gpu(1).reason.lower() or code != 15
    assert run.value(1, "power_watts") is None
    assert run.value(1, "energy_joules_total") > 0  # a counter stays, or it would seem to restart
    for index in (0, 2):
        before = run.gpu(index).last_sample_monotonic_ns
        _, seconds = run.until(lambda: run.gpu(index).last_sample_monotonic_ns > before)  # noqa: B023
        assert seconds < PERIOD_SECONDS + run.busy_seconds
    assert run.up(0, 2)
    assert {"gpu_is_lost" if code == 15 else "unknown"} == {name for _, name in run.gpus.nvml_errors}
    mend(run)
    _, seconds = run.until(lambda: run.up(0, 1, 2))
    assert seconds < PERIOD_SECONDS + run.busy_seconds
    assert run.value(1, "power_watts") == pytest.approx(79.004)
    assert run.supervisor.child_pids() == child  # no process had to die for it


def test_a_gpu_that_is_lost_from_the_start_shows_as_down(sampled):
    run = sampled([h100(0), h100(1)], wait=False, prepare=lambda fake: fake.gpus[1].faults.append("error * 15"))
    run.until(lambda: run.up(0) and run.gpu(1) is not None)
    assert not run.gpu(1).up
    mend(run)
    run.until(lambda: run.up(0, 1))
    assert [(gpu.label, gpu.uuid) for gpu in run.gpus] == [(str(n), gpu.uuid) for n, gpu in enumerate(run.fake.gpus)]


def test_a_gpu_that_vanishes_keeps_its_label_and_others_keep_theirs(sampled):
    """After a reload without GPU 0, NVML numbers the rest anew: the labels follow the UUIDs."""
    run = sampled([h100(0), h100(1), h100(2)])
    uuids = {gpu.label: gpu.uuid for gpu in run.gpus}
    gone = run.fake.gpus.pop(0)
    run.fake.reload()
    run.until(lambda: run.up("1", "2") and not run.gpu("0").up)
    run.fake.gpus.insert(0, gone)
    run.fake.reload()
    run.until(lambda: run.up("0", "1", "2") and run.gpus.nvml_reinits >= 2)
    assert {gpu.label: gpu.uuid for gpu in run.gpus} == uuids


def test_a_driver_reload_is_survived_and_counters_go_on(sampled):
    gpu = h100()
    run = sampled([gpu])
    before = run.value(0, "energy_joules_total")
    assert before == pytest.approx(2926.763)
    gpu.get("nvmlDeviceGetTotalEnergyConsumption", 5000)  # the driver's counter restarts: 5 J since its reload
    run.fake.faults = ["error nvmlInitWithFlags 9"]
    run.fake.reload()
    _, seconds = run.until(lambda: not run.gpu(0).up)
    assert seconds < PERIOD_SECONDS + run.busy_seconds
    run.turns(1.5)
    assert run.gpus.state == "failing"
    mend(run)
    _, seconds = run.until(lambda: run.up(0))
    assert seconds < PERIOD_SECONDS + run.busy_seconds
    assert run.gpus.nvml_reinits >= 1
    assert any(code == "uninitialized" for _, code in run.gpus.nvml_errors)
    assert run.gpus.nvml_errors["nvmlInit", "driver_not_loaded"] >= 1
    run.until(lambda: run.value(0, "energy_joules_total") > before)
    assert run.value(0, "energy_joules_total") == pytest.approx(before + 5.0)


def test_an_upgraded_driver_gets_a_new_child(sampled):
    """The library that a process has mapped belongs to the driver of its time: error 18 until another process asks."""
    run = sampled([h100()])
    (child,) = run.supervisor.child_pids()
    with PynvmlProcess(run.fake.environment) as twin:
        twin.begin()
        run.fake.driver_version = "590.44.01"
        run.fake.reload()
        with pytest.raises(Exception, match="18"):
            twin.begin()
    _, seconds = run.until(lambda: run.up(0) and run.gpus.driver_version == "590.44.01")
    assert seconds < 2 * PERIOD_SECONDS + run.busy_seconds
    assert run.supervisor.child_pids() != [child]
    assert run.gpu(0).info["driver_version"] == "590.44.01"


@pytest.mark.parametrize(
    ("call", "asked_for"),
    [
        ("nvmlDeviceGetMemoryInfo_v2", "memory"),
        ("nvmlDeviceGetComputeRunningProcesses_v3", "processes"),
    ],
)
def test_a_call_that_hangs_costs_only_its_own_gpu(sampled, quick, call, asked_for):
    run = sampled([h100(0), h100(1), h100(2)], deadline_seconds=2)
    break_gpu(run, 1, f"hang {call}")
    _, seconds = run.until(lambda: not run.gpu(1).up)
    assert seconds < 2 + PERIOD_SECONDS + run.busy_seconds
    assert asked_for in run.gpu(1).reason
    assert run.up(0, 2)
    before = run.gpu(0).last_sample_monotonic_ns
    run.until(lambda: more_than(run, before))
    assert run.up(0, 2)
    assert run.gpu(1).age_seconds(time.monotonic_ns()) > 2
    mend(run)
    _, seconds = run.until(lambda: run.up(0, 1, 2))
    assert (
        seconds < 4 * PERIOD_SECONDS + run.busy_seconds
    )  # when its child was killed meanwhile, the next try comes with back-off
    run.until(lambda: len(run.supervisor.child_pids()) == 1)  # it is sampled with the others again
    run.turns(1.2)
    assert run.up(0, 1, 2)


def test_a_hang_is_reported_within_ten_seconds_with_the_defaults(sampled):
    run = sampled([h100(0), h100(1)])
    began = time.monotonic()
    break_gpu(run, 0, "hang nvmlDeviceGetTotalEnergyConsumption")
    others = []

    def reported():
        others.append(run.gpu(1).age_seconds(time.monotonic_ns()))
        return not run.gpu(0).up

    run.until(reported)
    assert time.monotonic() - began < HANG_SECONDS + run.busy_seconds - 1
    assert run.gpu(1).up
    assert max(others) < 4.0 + run.busy_seconds  # the other one's values were hardly older than usual


def test_twin_who_asks_in_his_own_thread_stands_still(sampled):
    run = sampled([h100(0), h100(1)])
    with PynvmlProcess(run.fake.environment) as twin:
        twin.begin()
        break_gpu(run, 0, "hang nvmlDeviceGetPowerUsage")
        twin.send("[n.nvmlDeviceGetPowerUsage(x) for x in h]")
        with pytest.raises(TimeoutError):
            twin.answer(3.0)
    assert run.up(1)


def test_two_gpus_hang_and_the_third_goes_on(sampled, quick):
    run = sampled([h100(0), h100(1), h100(2)], deadline_seconds=2)
    run.fake.gpus[0].faults.append("hang nvmlDeviceGetMemoryInfo_v2")
    break_gpu(run, 1, "hang nvmlDeviceGetMemoryInfo_v2")
    run.until(lambda: not run.gpu(0).up and not run.gpu(1).up and run.gpu(2).age_seconds(time.monotonic_ns()) < 1.5)
    assert run.gpu(2).up
    mend(run)
    run.until(lambda: run.up(0, 1, 2))
    run.until(lambda: len(run.supervisor.child_pids()) == 1)


def test_a_hung_child_is_killed_and_its_gpu_tried_again(sampled, quick):
    run = sampled([h100(0), h100(1)], deadline_seconds=0.6)
    (child,) = run.supervisor.child_pids()
    break_gpu(run, 0, "hang nvmlDeviceGetMemoryInfo_v2")
    run.until(lambda: child not in run.supervisor.child_pids())
    assert not os.path.exists(f"/proc/{child}/stat")
    run.turns(4.0)
    assert len(run.supervisor.child_pids()) <= 2
    mend(run)
    run.until(lambda: run.up(0, 1), seconds=30)


def test_a_child_that_cannot_be_killed_is_left_alone_and_is_the_only_one(sampled, quick, monkeypatch):
    """A thread in uninterruptible sleep ignores SIGKILL; here the signal is not sent, which looks the same from outside."""
    killed = []
    started = []
    started_as = NvmlChild.__init__

    def start(self, *arguments, **options):
        started_as(self, *arguments, **options)
        started.append(options["only"])

    def kill(self):
        self.killed = True
        killed.append(self.pid)

    with monkeypatch.context() as patched:
        patched.setattr(NvmlChild, "kill", kill)
        patched.setattr(NvmlChild, "__init__", start)
        run = sampled([h100(0), h100(1)], deadline_seconds=0.6)
        break_gpu(run, 0, "hang nvmlDeviceGetMemoryInfo_v2")
        run.until(lambda: killed)
        run.turns(4.0)
        assert len(killed) == 1
        assert started == [None, None]  # the first child, and the one that went on with GPU 1: nobody was sent after GPU 0
        assert run.gpu(1).up
        assert not run.gpu(0).up
    mend(run)
    run.until(lambda: run.up(0, 1))


def test_a_gpu_that_hangs_when_it_is_opened(sampled, quick, monkeypatch):
    monkeypatch.setattr(supervisor_module, "FIRST_SIDE_SECONDS", 0.5)
    run = sampled(
        [h100(0), h100(1)], wait=False, deadline_seconds=2,
        prepare=lambda fake: fake.gpus[0].faults.append("hang nvmlDeviceGetHandleByIndex_v2"),
    )  # fmt: skip
    run.until(lambda: run.up(1) and run.gpu(0) is not None)
    assert not run.gpu(0).up
    mend(run)
    run.until(lambda: run.up(0, 1))
    assert len(list(run.gpus)) == 2


def test_nvml_itself_hangs(sampled, monkeypatch):
    run = sampled([h100()], wait=False, deadline_seconds=0.5, prepare=lambda fake: fake.faults.append("hang nvmlInitWithFlags"))
    run.until(lambda: run.gpus.state == "failing")
    assert "starting NVML" in run.gpus.message
    mend(run)
    run.until(lambda: run.up(0))
    assert (run.gpus.state, run.gpus.message) == ("sampling", "")


@pytest.mark.parametrize(("fault", "library"), [("error nvmlInitWithFlags 9", True), ("", False)])
def test_no_driver_is_a_state_of_its_own(sampled, monkeypatch, tmp_path, fault, library):
    def prepare(fake):
        fake.faults = [fault]
        if not library:
            monkeypatch.setattr(type(fake), "environment", {"LD_LIBRARY_PATH": str(tmp_path)})

    run = sampled([h100()], wait=False, prepare=prepare)
    run.until(lambda: run.gpus.state == "absent")
    assert run.gpus.message.startswith("no NVIDIA driver here: ")
    assert list(run.gpus) == []
    run.until(lambda: not run.supervisor.child_pids())
    run.turns(1.5)
    assert not run.supervisor.child_pids()  # looked for again after a minute, not all the time


def test_a_driver_that_comes_later_is_found(sampled, monkeypatch):
    monkeypatch.setattr(supervisor_module, "ABSENT_RETRY_SECONDS", 0.5)
    run = sampled([h100()], wait=False, prepare=lambda fake: fake.faults.append("error nvmlInitWithFlags 9"))
    run.until(lambda: run.gpus.state == "absent")
    mend(run)
    run.until(lambda: run.up(0))


def test_a_child_that_dies_is_replaced_and_counters_never_fall(sampled):
    gpu = h100()
    gpu.get("nvmlDeviceGetUtilizationRates", 50, 10)
    gpu.lines += ["rate nvmlDeviceGetTotalEnergyConsumption 100000", "rate field:197 5000000"]
    run = sampled([gpu])
    run.until(lambda: run.value(0, "busy_seconds_total") > 0.4 and run.value(0, "pcie_transmit_bytes_total") > 0)
    names = ("busy_seconds_total", "energy_joules_total", "pcie_transmit_bytes_total")
    history = [[run.value(0, name) for name in names]]
    (child,) = run.supervisor.child_pids()
    os.kill(child, signal.SIGKILL)
    run.until(lambda: run.supervisor.child_pids() not in ([], [child]))

    def all_have_grown():
        history.append([run.value(0, name) for name in names])
        return all(now > first for now, first in zip(history[-1], history[0], strict=True))

    run.until(all_have_grown)
    for column in zip(*history, strict=True):
        assert column == tuple(sorted(column))


def more_than(run, monotonic_ns):
    return run.gpu(0).last_sample_monotonic_ns > monotonic_ns


def test_mig_devices_are_cut_anew(sampled):
    gpu = mig_h100(slices=2)
    gpu.migs[1].process(os.getpid(), 512 << 20, instances=(8, 0))
    run = sampled([gpu], slow_seconds=1)
    assert [each.label for each in run.gpus] == ["0", "0:0", "0:1"]
    assert run.gpu("0:1").info["mig_profile"] == "1g.10gb"
    assert run.gpu("0:1").info["uuid"] == gpu.migs[1].uuid
    assert run.value("0:1", "memory_used_bytes") == 2 << 30
    assert list(run.gpu("0:1").processes) == [os.getpid()]
    assert run.gpu("0").processes == {}
    assert run.value("0", "utilization_ratio") is None  # not 0: the whole GPU no longer says
    assert run.value("0", "power_watts") == pytest.approx(79.004)
    gone = gpu.migs.pop()
    run.fake.write()
    run.until(lambda: gone.uuid not in run.gpus.by_uuid)
    assert run.up("0", "0:0")
    gpu.migs.append(gone)
    run.fake.write()
    run.until(lambda: run.up("0", "0:0", "0:1"))


def test_what_doctor_asks(sampled, tmp_path):
    run = sampled([h100(0), h100(1)], wait=False, prepare=lambda fake: fake.gpus[1].faults.append("error * 15"))
    command = [sys.executable, "-P", "-m", "gpuwatch.samplers.nvml_worker", "--probe"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    assert found == {"driver_version": "580.159.04", "gpus": ["NVIDIA H100 80GB HBM3", "GPU 1: GPU is lost"]}
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    absent = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60, env=environment).stdout)
    assert absent == {"error": "NVML Shared Library Not Found"}
    assert run.supervisor.child_pids() == []


def test_a_hung_child_dies_with_its_daemon(tmp_path, sampled):
    """The daemon is killed while a call hangs: nothing is left that would hold the GPU."""
    run = sampled([h100()])
    run.supervisor.close()
    run.fake.counts.unlink()
    run.fake.gpus[0].faults.append("hang nvmlDeviceGetMemoryInfo_v2")
    run.fake.write()
    code = """
import time
from gpuwatch.config import Sampling
from gpuwatch.samplers.supervisor import Supervisor
from gpuwatch.state.gpus import Gpus
s = Supervisor(Gpus(), Sampling())
s.turn()
print(*s.child_pids(), flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    deadline = time.monotonic() + 60
    while run.fake.calls().get("nvmlDeviceGetMemoryInfo_v2", 0) == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    parent.kill()
    parent.wait(10)
    parent.stdout.close()
    while os.path.exists(f"/proc/{child}/stat") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{child}/stat")
