"""Xid errors and news of wear, as the driver reports them by itself."""

import re
import time

from tests.fake_nvml.driver import CLOCKS, DOUBLE_BIT_ECC, XID, h100, mig_h100


def xids(run, label=0):
    """{Xid: count} of a GPU."""
    readings = run.gpu(label).readings(time.monotonic_ns())
    return {labels[0][1]: value for name, labels, value in readings if name == "xid_errors_total"}


def last(run, label, xid):
    readings = run.gpu(label).readings(time.monotonic_ns())
    return next((v for name, labels, v in readings if name == "xid_last_timestamp_seconds" and labels[0][1] == xid), None)


def registered(run, gpus):
    """Events from before a GPU was registered are history, so a test waits for that."""
    run.until(lambda: run.fake.calls().get("nvmlDeviceRegisterEvents", 0) >= gpus)


def test_an_xid_is_counted_on_its_gpu_with_its_time(sampled):
    run = sampled([h100(0), h100(1)], dear_seconds=0.5)
    registered(run, 2)
    assert xids(run, 0) == xids(run, 1) == {}
    began = time.time()
    for xid in (31, 31, 79):
        run.fake.gpus[1].report(XID, xid)
    run.fake.write()
    run.until(lambda: xids(run, 1) == {"31": 2, "79": 1})
    assert xids(run, 0) == {}
    assert began <= last(run, 1, "79") <= time.time()
    assert run.up(0, 1)
    run.fake.gpus[1].report(XID, 31)
    run.fake.write()
    run.until(lambda: xids(run, 1) == {"31": 3, "79": 1})


def test_what_happened_before_we_listened_is_not_counted(sampled):
    """The driver tells nothing of it; nor do we make it up after a restart of the child."""
    gpu = h100()
    gpu.report(XID, 79)
    run = sampled([gpu], dear_seconds=0.5)
    registered(run, 1)
    gpu.report(XID, 31)
    run.fake.write()
    run.until(lambda: xids(run))
    assert xids(run) == {"31": 1}


def test_other_events_are_no_xids_and_wear_is_looked_at_at_once(sampled):
    gpu = h100()
    run = sampled([gpu], dear_seconds=0.5, slow_seconds=3600)
    registered(run, 1)
    gpu.report(CLOCKS, 1)
    gpu.get("nvmlDeviceGetTotalEccErrors:1:0", 3)
    run.fake.write()
    run.turns(1.5)
    ecc = {"severity": "uncorrected", "lifetime": "volatile"}
    assert run.value(0, "ecc_errors_total", **ecc) == 0  # twin: without news of it, an hour may pass
    gpu.report(DOUBLE_BIT_ECC, 1)
    run.fake.write()
    run.until(lambda: run.value(0, "ecc_errors_total", **ecc) == 3)
    assert xids(run) == {}


def test_the_xid_of_a_gpu_that_falls_off_the_bus_is_told(sampled):
    run = sampled([h100(0), h100(1)], dear_seconds=0.5)
    registered(run, 2)
    run.fake.gpus[0].report(XID, 79)
    run.fake.gpus[0].faults.append("error * 15")
    run.fake.write()
    run.until(lambda: not run.gpu(0).up and xids(run, 0) == {"79": 1})
    # The lost GPU fails every wait; the other one's events arrive all the same, by a set without it.
    run.until(lambda: run.gpus.nvml_reinits >= 1)
    before = run.fake.calls()["nvmlDeviceRegisterEvents"]
    run.until(lambda: run.fake.calls()["nvmlDeviceRegisterEvents"] > before or before >= 3)
    deadline = time.monotonic() + 60
    while xids(run, 1) == {} and time.monotonic() < deadline:
        run.fake.gpus[1].report(XID, 13)
        run.fake.write()
        run.turns(1.0)
    assert "13" in xids(run, 1)
    assert xids(run, 0) == {"79": 1}


def test_after_a_driver_reload_a_new_set_listens(sampled):
    gpu = h100()
    run = sampled([gpu], dear_seconds=0.5)
    registered(run, 1)
    run.fake.reload()
    run.until(lambda: run.gpus.nvml_reinits >= 1)
    registered(run, 2)
    gpu.report(XID, 48)
    run.fake.write()
    run.until(lambda: xids(run) == {"48": 1})
    calls = run.fake.calls()
    assert calls["nvmlEventSetCreate"] == 2
    assert calls["nvmlEventSetFree"] == 1  # of the set that went with the old driver


def test_a_gpu_that_two_children_know_is_counted_once(sampled, monkeypatch):
    """The child that hung still has all GPUs in its set when another one goes on with the rest."""
    from gpuwatch.samplers import supervisor as supervisor_module

    monkeypatch.setattr(supervisor_module, "SIDE_SECONDS", 0.5)
    run = sampled([h100(0), h100(1)], deadline_seconds=20)
    registered(run, 2)
    run.fake.gpus[0].faults.append("hang nvmlDeviceGetMemoryInfo_v2")
    run.fake.write()
    run.until(lambda: len(run.supervisor.child_pids()) == 2)
    registered(run, 3)
    run.until(lambda: run.gpu(1).age_seconds(time.monotonic_ns()) < 1.0)
    run.fake.gpus[1].report(XID, 31)
    run.fake.gpus[0].faults.clear()
    run.fake.write()
    run.until(lambda: xids(run, 1) == {"31": 1} and run.up(0, 1))
    run.turns(1.5)
    assert xids(run, 1) == {"31": 1}


def test_a_wait_that_hangs_stops_neither_sampling_nor_the_end(sampled):
    run = sampled([h100()], dear_seconds=0.5)
    (child,) = run.supervisor.child_pids()
    run.fake.faults.append("hang nvmlEventSetWait_v2")
    run.fake.write()
    run.turns(1.0)
    before = run.gpu(0).last_sample_monotonic_ns
    run.until(lambda: run.gpu(0).last_sample_monotonic_ns > before)
    began = time.monotonic()
    run.supervisor.pause(release=True)
    run.until(lambda: not run.supervisor.child_pids())
    assert time.monotonic() - began < 2.0 + run.busy_seconds  # before it would have been killed
    run.supervisor.resume()
    run.until(lambda: run.supervisor.child_pids() not in ([], [child]) and run.up(0))


def test_a_wait_that_hangs_when_a_new_session_is_due_gets_a_new_process(sampled):
    """NVML may not be shut down under a call of ours, so this process makes room for another one."""
    run = sampled([h100(0), h100(1)], dear_seconds=0.5)
    (child,) = run.supervisor.child_pids()
    run.fake.faults.append("hang nvmlEventSetWait_v2")
    run.fake.write()
    run.turns(0.6)
    run.fake.gpus[1].faults.append("error * 15")
    run.fake.write()
    run.until(lambda: child not in run.supervisor.child_pids())
    run.until(lambda: run.up(0))
    assert not run.gpu(1).up


def test_a_device_without_events_and_a_driver_without_the_call(sampled):
    gpu = h100()
    gpu.lines = [line for line in gpu.lines if not re.match("get nvmlDeviceGetSupportedEventTypes ", line)]
    run = sampled([gpu], dear_seconds=0.5)
    run.turns(1.2)
    assert "nvmlDeviceRegisterEvents" not in run.fake.calls()
    assert "nvmlEventSetWait_v2" not in run.fake.calls()  # nobody waits for nothing
    assert run.gpus.nvml_errors == {}


def test_an_old_driver_has_no_event_sets(sampled):
    run = sampled([h100()], hide=["nvmlEventSetWait_v2"], dear_seconds=0.5)
    run.turns(0.5)
    assert "nvmlEventSetCreate" not in run.fake.calls()
    assert run.up(0)


def test_the_whole_gpu_counts_the_xids_of_its_mig_devices(sampled):
    gpu = mig_h100(slices=2)
    run = sampled([gpu], dear_seconds=0.5)
    registered(run, 1)
    gpu.report(XID, 94)
    run.fake.write()
    run.until(lambda: xids(run, "0") == {"94": 1})
    assert xids(run, "0:0") == xids(run, "0:1") == {}
