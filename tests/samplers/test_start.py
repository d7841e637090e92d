"""How sampling starts: by a child that was started ahead, and heard as soon as it speaks."""

import time

from gpuwatch.config import Sampling
from gpuwatch.samplers.nvml_child import NvmlChild
from gpuwatch.samplers.supervisor import Supervisor
from gpuwatch.state.gpus import Gpus
from tests.fake_nvml.driver import FakeDriver, h100


def test_a_child_that_was_started_ahead_is_the_only_one(tmp_path, monkeypatch):
    for name, value in FakeDriver(tmp_path, [h100(0)]).environment.items():
        monkeypatch.setenv(name, value)
    child = NvmlChild(Sampling(), time.monotonic_ns(), {}, skip=set(), only=None)
    gpus = Gpus()
    supervisor = Supervisor(gpus, Sampling(), first=child)
    try:
        deadline = time.monotonic() + 60
        while gpus.state == "starting" and time.monotonic() < deadline:
            supervisor.turn()
            assert supervisor.child_pids() == [child.pid]
            time.sleep(0.01)
        assert gpus.state == "sampling"
        assert [gpu.up for gpu in gpus] == [True]
    finally:
        supervisor.close(10)
    assert child.exit_status() is not None
