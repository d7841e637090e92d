"""Extremes between two readings, from what the driver recorded by itself."""

import re
import time

from tests.fake_nvml.driver import h100


def extremes(run, name, window="60s", **labels):
    readings = run.gpu(0).readings(time.monotonic_ns())
    wanted = (*labels.items(), ("window", window))
    return next((value for known, found, value in readings if known == name and found == wanted), None)


def played(gpu, key, base, *spikes):
    """`base`, but for `spikes`: (from, until, numbers)."""
    gpu.lines = [line for line in gpu.lines if not line.startswith(f"get {key} ")]
    gpu.lines.append(f"at 0 {key} {base}")
    for since, until, numbers in spikes:
        gpu.lines += [f"at {since} {key} {numbers}", f"at {until} {key} {base}"]


def test_a_spike_of_power_that_no_reading_of_ours_meets(sampled):
    """40 ms at 650 W, with readings once a second: the ring has two samples of it."""
    gpu = h100()
    played(gpu, "nvmlDeviceGetPowerUsage", 80_000, *((n + 0.5, n + 0.54, 650_000) for n in range(3, 9)))
    run = sampled([gpu], fast_hz=0.5, memory_hz=10)
    run.until(lambda: extremes(run, "power_peak_watts") == 650.0, 30)
    assert run.value(0, "power_watts") < 400  # twin: what we read ourselves


def test_utilization_between_our_readings(sampled):
    gpu = h100()
    played(gpu, "nvmlDeviceGetUtilizationRates", "5 3", *((n + 0.3, n + 0.7, "97 61") for n in range(2, 14)))
    run = sampled([gpu], fast_hz=0.2, memory_hz=10, slow_seconds=1)
    run.until(lambda: extremes(run, "utilization_peak_ratio") == 0.97, 30)
    assert extremes(run, "memory_bandwidth_utilization_peak_ratio") == 0.61


def test_the_lowest_clock_where_the_driver_records_it(sampled):
    gpu = h100()
    gpu.get("ring:5", 1980)
    played(gpu, "ring:5", 1980, *((n + 0.3, n + 0.7, 345) for n in range(1, 14)))
    run = sampled([gpu], slow_seconds=1)
    run.until(lambda: extremes(run, "clock_low_hertz", domain="sm") == 345e6, 30)
    assert extremes(run, "clock_low_hertz", domain="memory") is None


def test_rings_that_the_device_lacks_are_asked_for_once(sampled):
    """The recorded H100 has none of the clocks: NotFound."""
    gpu = h100()
    run = sampled([gpu])
    run.turns(2.5)
    assert extremes(run, "clock_low_hertz", domain="sm") is None
    gpu = h100(1)
    gpu.lines = [line for line in gpu.lines if not re.match("get nvmlDeviceGet(PowerUsage|UtilizationRates) ", line)]
    run.fake.gpus = [gpu]
    run.fake.reload()
    run.until(lambda: run.gpu(1) is not None and run.gpu(1).up)
    before = run.fake.calls()["nvmlDeviceGetSamples"]
    run.turns(2.5)
    assert run.fake.calls()["nvmlDeviceGetSamples"] == before


def test_a_ring_is_read_at_its_own_pace(sampled):
    """Power every other second, the rest every ten: on an H100 they cost 0.2 ms and 1.7 ms a call."""
    run = sampled([h100()])
    run.turns(1.0)
    before = run.fake.calls()["nvmlDeviceGetSamples"]
    began = time.monotonic()
    run.turns(4.0)
    seconds = time.monotonic() - began
    assert run.fake.calls()["nvmlDeviceGetSamples"] - before <= seconds / 2 + 1 + 2 * (seconds / 10 + 1)


def test_a_driver_without_the_call(sampled):
    run = sampled([h100()], hide=["nvmlDeviceGetSamples"])
    run.turns(1.2)
    assert extremes(run, "power_peak_watts") == 79.004  # from our own readings
    assert run.gpus.nvml_errors == {}
