"""The fake driver through the real pynvml: what it answers, and that each switch does what README.md says."""

import os
import time

import pytest

from tests.fake_nvml.driver import (
    CLOCKS,
    H100_RESERVED_BYTES,
    H100_SERIES,
    H100_STATIC,
    XID,
    FakeDriver,
    h100,
    mig_h100,
    replay,
)
from tests.fake_nvml.pynvml_process import NvmlFailure, PynvmlProcess

LOST, UNINITIALIZED, NOT_FOUND, NOT_SUPPORTED, TIMED_OUT = 15, 1, 6, 3, 10

#: What the recording holds that no monitor of ours asks for, so that the fake says NOT_SUPPORTED to it.
NOT_PLAYED = {
    "AdaptiveClockInfoStatus", "AddressingMode", "C2cModeInfoV", "C2cModeInfoV1", "AccountingPids",
    "ConfComputeProtectedMemoryUsage", "ConfComputeGpuCertificate", "CurrentClockFreqs", "DefaultEccMode",
    "DynamicPstatesInfo", "EncoderSessions", "EncoderStats", "FBCSessions", "FBCStats", "GpcClkMinMaxVfOffset",
    "GpcClkVfOffset", "GridLicensableFeatures", "GridLicensableFeatures_v4", "GspFirmwareVersion",
    "LastBBXFlushTime", "MarginTemperature", "MemClkMinMaxVfOffset", "MemClkVfOffset", "ModuleId", "Pdi",
    "PerformanceModes", "RepairStatus", "RowRemapperHistogram", "SupportedMemoryClocks", "SupportedPerformanceStates",
    "UnrepairableMemoryFlag_v1",
}  # fmt: skip


@pytest.fixture
def one(tmp_path):
    """One idle H100 and a pynvml process that has its handle."""
    fake = FakeDriver(tmp_path, [h100()])
    with PynvmlProcess(fake.environment) as nvml:
        nvml.begin()
        yield fake, nvml


def test_every_recorded_getter_answers_as_the_h100_did(one):
    _, nvml = one
    played = 0
    for name, recorded in H100_STATIC["getters"].items():
        if "TypeError" in recorded.get("error", "") or name.removeprefix("nvmlDeviceGet") in NOT_PLAYED:
            continue
        try:
            answer = nvml.ask(f"n.{name}(h[0])")
        except NvmlFailure:
            # The H100 said NotSupported, InvalidArgument or FunctionNotFound: no value either way.
            assert "value" not in recorded, name
            continue
        assert answer == recorded.get("value"), name
        played += 1
    assert played > 70


def test_memory_in_both_versions(one):
    fake, nvml = one
    total = H100_STATIC["memory_v2"]["total"]
    fake.gpus[0].get("memory", total, H100_RESERVED_BYTES, 1 << 30)
    fake.write()
    second = nvml.ask("n.nvmlDeviceGetMemoryInfo(h[0], n.nvmlMemory_v2)")
    assert (second["used"], second["reserved"], second["total"]) == (1 << 30, H100_RESERVED_BYTES, total)
    first = nvml.ask("n.nvmlDeviceGetMemoryInfo(h[0])")
    assert first["used"] == (1 << 30) + H100_RESERVED_BYTES
    assert first["free"] == second["free"]


def test_the_recorded_series_plays_on_its_time_axis(tmp_path):
    gpu = h100()
    rows = replay(gpu, first_seconds=20.0, last_seconds=24.0, speed=2.0, pid=os.getpid())
    fake = FakeDriver(tmp_path, [gpu])
    used = set()
    with PynvmlProcess(fake.environment) as nvml:
        nvml.begin()
        while time.monotonic() < fake.epoch + 2.2:
            used.add(nvml.ask("n.nvmlDeviceGetMemoryInfo(h[0]).used"))
            time.sleep(0.005)
    assert max(used) == max(row["used"] for row in rows) == max(row["used"] for row in H100_SERIES)
    assert used <= {row["used"] for row in rows}


def test_counters_waves_and_sample_rings(one):
    fake, nvml = one
    fake.gpus[0].lines += ["rate nvmlDeviceGetTotalEnergyConsumption 700000", "wave nvmlDeviceGetPowerUsage 50000 0.5"]
    fake.write()
    before, began = nvml.ask("n.nvmlDeviceGetTotalEnergyConsumption(h[0])"), time.monotonic()
    time.sleep(0.3)
    grown = nvml.ask("n.nvmlDeviceGetTotalEnergyConsumption(h[0])") - before
    assert 0.2 * 700000 < grown < (time.monotonic() - began + 0.1) * 700000
    samples = nvml.ask("[s.sampleValue.uiVal for s in n.nvmlDeviceGetSamples(h[0], 0, 0)[1]]")
    assert len(samples) == 119  # as on the H100
    assert max(samples) - min(samples) > 80000


def test_a_lost_gpu_and_its_return(one):
    fake, nvml = one
    fake.gpus[0].faults.append(f"error * {LOST}")
    fake.write()
    for expression in ("n.nvmlDeviceGetPowerUsage(h[0])", "n.nvmlDeviceGetHandleByIndex(0) and 1"):
        with pytest.raises(NvmlFailure) as failure:
            nvml.ask(expression)
        assert failure.value.code == LOST
    fake.gpus[0].faults.clear()
    fake.write()
    assert nvml.ask("n.nvmlDeviceGetPowerUsage(h[0])") > 0


def test_a_driver_reload_asks_for_nvml_init(one):
    fake, nvml = one
    fake.reload()
    with pytest.raises(NvmlFailure) as failure:
        nvml.ask("n.nvmlDeviceGetPowerUsage(h[0])")
    assert failure.value.code == UNINITIALIZED
    nvml.begin()
    assert nvml.ask("n.nvmlDeviceGetPowerUsage(h[0])") > 0


def test_an_upgraded_driver_needs_a_new_process(one):
    fake, nvml = one
    fake.driver_version = "590.1"
    fake.reload()
    with pytest.raises(NvmlFailure) as failure:
        nvml.begin()
    assert failure.value.code == 18
    with PynvmlProcess(fake.environment) as fresh:
        fresh.begin()
        assert fresh.ask("n.nvmlSystemGetDriverVersion()") == "590.1"


def test_a_call_hangs_until_the_switch_is_taken_back(one):
    fake, nvml = one
    fake.gpus[0].faults.append("hang nvmlDeviceGetPowerUsage")
    fake.write()
    assert nvml.ask("n.nvmlDeviceGetTemperature(h[0], 0)") == 44
    with pytest.raises(TimeoutError):
        nvml.ask("n.nvmlDeviceGetPowerUsage(h[0])", timeout_seconds=0.5)
    fake.gpus[0].faults.clear()
    fake.write()
    assert nvml.answer() > 0


def test_a_slow_call_takes_its_time(one):
    fake, nvml = one
    fake.gpus[0].faults.append("slow nvmlDeviceGetPcieThroughput 20000")
    fake.write()
    began = time.monotonic()
    for _ in range(5):
        nvml.ask("n.nvmlDeviceGetPcieThroughput(h[0], 0)")
    assert time.monotonic() - began >= 0.1


@pytest.mark.parametrize(("struct_bytes", "whole"), [(24, True), (32, False)])
def test_the_two_layouts_of_process_lists(tmp_path, struct_bytes, whole):
    """pynvml knows one layout: the other one scrambles what it reads, as it did for users of early R535 drivers."""
    gpu = h100()
    for number in range(3):
        gpu.process(1000 + number, (number + 1) << 30)
    fake = FakeDriver(tmp_path, [gpu])
    fake.process_struct_bytes = struct_bytes
    fake.write()
    with PynvmlProcess(fake.environment) as nvml:
        nvml.begin()
        rows = nvml.ask("[(p.pid, p.usedGpuMemory) for p in n.nvmlDeviceGetComputeRunningProcesses(h[0])]")
    assert (rows == [[1000, 1 << 30], [1001, 2 << 30], [1002, 3 << 30]]) is whole
    assert len(rows) == 3


def test_memory_that_the_driver_does_not_tell(tmp_path):
    gpu = h100()
    gpu.process(1000, "na")
    fake = FakeDriver(tmp_path, [gpu])
    with PynvmlProcess(fake.environment) as nvml:
        nvml.begin()
        assert nvml.ask("[p.usedGpuMemory for p in n.nvmlDeviceGetComputeRunningProcesses(h[0])]") == [None]


def test_process_utilization_rows_are_fresh_idle_or_garbage(tmp_path):
    gpu = h100()
    gpu.process(1000, 1 << 30, sm_percent=40)
    gpu.processes.append("busy 77777 37100 0 0 0 - - 5")  # a stamp of 1970, and more than everything
    fake = FakeDriver(tmp_path, [gpu])
    with PynvmlProcess(fake.environment) as nvml:
        nvml.begin()
        rows = nvml.ask("[(r.pid, r.smUtil) for r in n.nvmlDeviceGetProcessUtilization(h[0], 0)]")
        assert rows == [[1000, 40], [77777, 37100]]
        gpu.processes.clear()
        fake.write()
        with pytest.raises(NvmlFailure) as failure:
            nvml.ask("n.nvmlDeviceGetProcessUtilization(h[0], 0)")
        assert failure.value.code == NOT_FOUND


def test_events_are_told_once_and_none_from_before(one):
    fake, nvml = one
    gpu = fake.gpus[0]
    gpu.report(XID, 13)
    fake.write()
    nvml.ask("globals().update(s=n.nvmlEventSetCreate())")
    nvml.ask("n.nvmlDeviceRegisterEvents(h[0], n.nvmlEventTypeXidCriticalError, s)")
    with pytest.raises(NvmlFailure) as failure:
        nvml.ask("n.nvmlEventSetWait_v2(s, 60)")
    assert failure.value.code == TIMED_OUT
    gpu.report(CLOCKS, 5)  # nobody registered for it
    gpu.report(XID, 79)
    gpu.report(XID, 31, at=fake_seconds(fake) + 0.3)
    fake.write()
    answer = "(lambda e: [e.eventType, e.eventData])(n.nvmlEventSetWait_v2(s, {}))"
    assert nvml.ask(answer.format(0)) == [XID, 79]
    began = time.monotonic()
    assert nvml.ask(answer.format(5000)) == [XID, 31]
    assert time.monotonic() - began > 0.1
    fake.reload()
    with pytest.raises(NvmlFailure) as failure:
        nvml.ask(answer.format(5000))
    assert failure.value.code == UNINITIALIZED


def test_a_lost_gpu_fails_the_wait_of_its_set(one):
    fake, nvml = one
    nvml.ask("globals().update(s=n.nvmlEventSetCreate())")
    nvml.ask("n.nvmlDeviceRegisterEvents(h[0], n.nvmlEventTypeXidCriticalError, s)")
    fake.gpus[0].faults.append(f"error * {LOST}")
    fake.gpus[0].report(XID, 79)
    fake.write()
    assert nvml.ask("n.nvmlEventSetWait_v2(s, 0).eventData") == 79  # the reason comes first
    with pytest.raises(NvmlFailure) as failure:
        nvml.ask("n.nvmlEventSetWait_v2(s, 1000)")
    assert failure.value.code == LOST


def test_gpm_is_the_mean_between_two_samples(one):
    fake, nvml = one
    gpu = fake.gpus[0]
    gpu.lines = [line for line in gpu.lines if not line.startswith("get gpm:5 ")]
    change = fake_seconds(fake) + 0.5
    gpu.lines += ["at 0 gpm:5 0", f"at {change} gpm:5 80000"]
    fake.write()
    assert nvml.ask("n.nvmlGpmQueryDeviceSupport(h[0]).isSupportedDevice") == 1
    take = "n.nvmlGpmSampleGet(h[0], globals().setdefault('{0}', n.nvmlGpmSampleAlloc())) and 1"
    nvml.ask(take.format("a"))
    before = fake_seconds(fake)
    time.sleep(1.0)
    nvml.ask(take.format("b"))
    after = fake_seconds(fake)
    nvml.ask("globals().update(m=n.c_nvmlGpmMetricsGet_t(version=1, numMetrics=1, sample1=a, sample2=b))")
    nvml.ask("setattr(m.metrics[0], 'metricId', 5)")
    value = nvml.ask("n.nvmlGpmMetricsGet(m).metrics[0].value")
    assert value == pytest.approx(80 * (after - change) / (after - before), abs=4)
    nvml.ask("[n.nvmlGpmSampleFree(x) for x in (a, b)]")


def test_the_newer_list_of_utilization_is_there_where_the_scenario_has_it(one):
    fake, nvml = one
    fake.gpus[0].processes += ["busy 1000 40 30 20 10"]
    fake.write()
    ask = "[(r.pid, r.smUtil, r.memUtil, r.encUtil, r.decUtil) for r in n.nvmlDeviceGetProcessesUtilizationInfo(h[0], 0)]"
    with pytest.raises(NvmlFailure) as failure:
        nvml.ask(ask)
    assert failure.value.code == NOT_SUPPORTED
    fake.gpus[0].get("nvmlDeviceGetProcessesUtilizationInfo", 1)
    fake.write()
    assert nvml.ask(ask) == [[1000, 40, 30, 20, 10]]


def fake_seconds(fake):
    return time.monotonic() - fake.epoch


def test_mig_devices(tmp_path):
    gpu = mig_h100(slices=2)
    gpu.migs[1].process(1000, 1 << 30, instances=(8, 0))
    fake = FakeDriver(tmp_path, [gpu])
    with PynvmlProcess(fake.environment) as nvml:
        nvml.begin()
        assert nvml.ask("n.nvmlDeviceGetMigMode(h[0])") == [1, 1]
        with pytest.raises(NvmlFailure) as failure:
            nvml.ask("n.nvmlDeviceGetUtilizationRates(h[0])")
        assert failure.value.code == NOT_SUPPORTED
        mig = "n.nvmlDeviceGetMigDeviceHandleByIndex(h[0], 1)"
        assert nvml.ask(f"n.nvmlDeviceGetUUID({mig})") == gpu.migs[1].uuid
        assert nvml.ask(f"n.nvmlDeviceGetMemoryInfo({mig}, n.nvmlMemory_v2).used") == 2 << 30
        assert nvml.ask(f"[p.pid for p in n.nvmlDeviceGetComputeRunningProcesses({mig})]") == [1000]
        with pytest.raises(NvmlFailure) as failure:
            nvml.ask("n.nvmlDeviceGetMigDeviceHandleByIndex(h[0], 2) and 1")
        assert failure.value.code == NOT_FOUND


def test_no_driver_and_no_library(tmp_path):
    fake = FakeDriver(tmp_path, [h100()])
    fake.faults.append("error nvmlInitWithFlags 9")
    fake.write()
    for environment, code in ((fake.environment, 9), ({**fake.environment, "LD_LIBRARY_PATH": str(tmp_path)}, 12)):
        with PynvmlProcess(environment) as nvml:
            with pytest.raises(NvmlFailure) as failure:
                nvml.begin()
            assert failure.value.code == code


def test_an_older_driver_lacks_a_symbol(tmp_path):
    fake = FakeDriver(tmp_path, [h100()], hide=["nvmlDeviceGetMemoryInfo_v2"])
    with PynvmlProcess(fake.environment) as nvml:
        nvml.begin()
        assert nvml.ask("n.nvmlDeviceGetMemoryInfo(h[0]).used") == H100_RESERVED_BYTES
        with pytest.raises(NvmlFailure) as failure:
            nvml.ask("n.nvmlDeviceGetMemoryInfo(h[0], n.nvmlMemory_v2)")
        assert failure.value.code == 13


def test_a_misspelt_switch_stops_the_process(tmp_path):
    fake = FakeDriver(tmp_path, [h100()])
    fake.gpus[0].faults.append("hnag *")
    fake.write()
    with PynvmlProcess(fake.environment) as nvml:
        nvml.send("n.nvmlInit()")
        assert nvml.process.wait(20) != 0


def test_calls_are_counted_across_processes(tmp_path):
    fake = FakeDriver(tmp_path, [h100()])
    for _ in range(2):
        with PynvmlProcess(fake.environment) as nvml:
            nvml.begin()
            nvml.ask("n.nvmlDeviceGetPowerUsage(h[0])")
    assert fake.calls()["nvmlDeviceGetPowerUsage"] == 2
