"""nvitop and gpustat, asked on the same fake driver: where they tell what we tell, it is the same."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.fake_nvml.driver import h100

NVITOP = """
import json
from nvitop import Device, libnvml
found = []
for device in Device.all():
    with device.oneshot():
        found.append({
            "uuid": device.uuid(), "name": device.name(), "memory_size_bytes": device.memory_total(),
            "memory_used_bytes": device.memory_used(), "utilization_ratio": device.gpu_utilization() / 100,
            "memory_bandwidth_utilization_ratio": device.memory_utilization() / 100,
            "encoder_utilization_ratio": device.encoder_utilization() / 100,
            "decoder_utilization_ratio": device.decoder_utilization() / 100,
            "power_watts": device.power_usage() / 1000, "power_limit_watts": device.power_limit() / 1000,
            "core": device.temperature(), "sm": device.sm_clock() * 1e6, "memory": device.memory_clock() * 1e6,
            "max_sm": device.max_sm_clock() * 1e6, "performance_state": int(device.performance_state()[1:]),
            "bar1_memory_used_bytes": device.bar1_memory_used(),
            "processes": {pid: p.gpu_memory() for pid, p in device.processes().items()},
        })
print(json.dumps(found))
"""


@pytest.fixture
def both(sampled):
    """Two GPUs at work, unequal in everything, and a process on the first."""
    gpus = [h100(0), h100(1)]
    for number, gpu in enumerate(gpus, 1):
        gpu.get("memory", 85520809984, 503316480, number * (10 << 30))
        gpu.get("nvmlDeviceGetUtilizationRates", 40 + number, 20 + number)
        gpu.get("nvmlDeviceGetEncoderUtilization", 10 + number, 100000)
        gpu.get("nvmlDeviceGetDecoderUtilization", 5 + number, 100000)
        gpu.get("nvmlDeviceGetPowerUsage", 300_123 + number)
        gpu.get("nvmlDeviceGetTemperature:0", 60 + number)
        gpu.get("nvmlDeviceGetClockInfo:1", 1500 + number)
        gpu.get("nvmlDeviceGetPerformanceState", number)
    gpus[0].process(os.getpid(), 3 << 30, sm_percent=30)
    run = sampled(gpus)
    run.turns(1.2)
    return run


def ask(run, command):
    environment = {**os.environ, **run.fake.environment}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_nvitop(both):
    pytest.importorskip("nvitop")
    told = ask(both, [sys.executable, "-c", NVITOP])
    assert [gpu["uuid"] for gpu in told] == [gpu.uuid for gpu in both.gpus]
    for gpu, theirs in zip(both.gpus, told, strict=True):
        assert theirs.pop("name") == gpu.info["name"]
        assert theirs.pop("uuid") == gpu.uuid
        assert {int(pid): used for pid, used in theirs.pop("processes").items()} == {
            pid: process.memory_bytes for pid, process in gpu.processes.items()
        }
        labelled = {
            "core": ("temperature_celsius", (("sensor", "core"),)),
            "sm": ("clock_hertz", (("domain", "sm"),)),
            "memory": ("clock_hertz", (("domain", "memory"),)),
            "max_sm": ("clock_max_hertz", (("domain", "sm"),)),
        }
        ours = {name: gpu.values[labelled.get(name, (name, ()))] for name in theirs}
        assert ours == pytest.approx(theirs)


def test_gpustat(both):
    if importlib.util.find_spec("gpustat") is None:
        pytest.skip("gpustat is not installed")
    told = ask(both, [sys.executable, "-m", "gpustat", "--json"])
    assert told["driver_version"] == both.gpus.driver_version
    for gpu, theirs in zip(both.gpus, told["gpus"], strict=True):
        value = gpu.values
        assert theirs["uuid"] == gpu.uuid
        assert theirs["name"] == gpu.info["name"]
        assert theirs["utilization.gpu"] / 100 == value["utilization_ratio", ()]
        assert theirs["utilization.enc"] / 100 == value["encoder_utilization_ratio", ()]
        assert theirs["utilization.dec"] / 100 == value["decoder_utilization_ratio", ()]
        assert theirs["temperature.gpu"] == value["temperature_celsius", (("sensor", "core"),)]
        assert theirs["power.draw"] == pytest.approx(value["power_watts", ()], abs=0.5)
        assert theirs["enforced.power.limit"] == value["power_limit_watts", ()]
        assert theirs["memory.total"] == value["memory_size_bytes", ()] // (1 << 20)
        assert theirs["memory.used"] == pytest.approx(value["memory_used_bytes", ()] / (1 << 20), abs=1)
        assert {row["pid"]: row["gpu_memory_usage"] << 20 for row in theirs["processes"]} == {
            pid: process.memory_bytes for pid, process in gpu.processes.items()
        }
