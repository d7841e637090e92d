"""A node as the real NVML child sees the fake driver, with a training run that a real State recorded on it."""

import os
import subprocess
import time

import pytest

from gpuwatch.state.node_report import NodeReport
from gpuwatch.state.summary import decode
from gpuwatch.top.own_sampler import OwnSampler
from gpuwatch.top.reading import Job, Reading
from tests.cli.conftest import Recorder
from tests.cli.test_runs_status import finding
from tests.fake_nvml.driver import FakeDriver, h100
from tests.running_daemon import wait_until

GIB = 1 << 30


def scene(trainer_pid, other_pid):
    """Three GPUs: one trains and is throttled, one has somebody else's process, one is lost."""
    gpus = [h100(index) for index in range(3)]
    gpus[0].get("memory", 80 * GIB, GIB, 40 * GIB)
    gpus[0].get("nvmlDeviceGetUtilizationRates", 97, 30)
    gpus[0].get("nvmlDeviceGetPowerUsage", 699000)
    gpus[0].get("nvmlDeviceGetCurrentClocksEventReasons", 1 << 2)
    gpus[0].process(trainer_pid, 39 * GIB, sm_percent=95)
    gpus[0].process(other_pid, GIB)
    gpus[1].process(other_pid, 8 * GIB, sm_percent=12)
    gpus[2].faults.append("error * 15")
    return gpus


class Scene:
    """`node` and `jobs` were read once from the real thing; `reading()` puts them together, changed as asked."""

    def __init__(self, node, jobs, trainer_pid, other_pid):
        self.node, self.jobs, self.trainer_pid, self.other_pid = node, jobs, trainer_pid, other_pid

    def reading(self, jobs=None, at=1.0, **changes):
        facts = {"source": "daemon", "note": "daemon 1", **changes}
        return Reading(at, self.node, self.jobs if jobs is None else jobs, **facts)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    other = subprocess.Popen(["sleep", "600"])
    fake = FakeDriver(folder, scene(os.getpid(), other.pid))
    before = {name: os.environ.get(name) for name in fake.environment}
    os.environ.update(fake.environment)
    recorder = Recorder(folder / "runs")
    fields = {"grad_norm": 1.5, "loss_scale": 65536.0, "data_seconds": 0.05, "forward_seconds": 0.1, "backward_seconds": 0.1}
    recorder.run("digits", steps=1234, ending=None, fields=fields, finding=finding())
    sampler = OwnSampler()
    try:
        jobs = _jobs(folder / "runs")
        live = {job.summary.identity.pid: job for job in jobs}

        def whole():
            sampler.turn()
            node = sampler.report(live)
            time.sleep(0.05)
            known = len(node.gpus) == 3 and all(process.user for gpu in node.gpus for process in gpu.processes)
            busy = known and any(process.sm_utilization_ratio for process in node.gpus[0].processes)
            ready = busy and "throttle_active" in node.gpus[0].values
            return node if ready and node.host.cpu_utilization_ratio is not None else None

        node = wait_until(whole, 60)
        assert isinstance(node, NodeReport)
        sampler.close()
        yield Scene(node, jobs, os.getpid(), other.pid)
    finally:
        sampler.close()
        recorder.state.close()
        other.kill()
        other.wait(20)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _jobs(logdir):
    found = [decode(path.read_bytes()) for path in sorted(logdir.rglob("run.json"))]
    return [Job(summary, summary.status) for summary in found]
