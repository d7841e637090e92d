"""Five minutes of every GPU, bounded; a point a second; nothing where nothing was measured."""

import json

import msgspec

from gpuwatch.exporters.gpu_window import CURVES, PEAK, POINTS, GpuWindow
from gpuwatch.state.gpus import Gpus


def busy(gpus, uuid="GPU-a", label="0"):
    gpu = gpus.find(uuid, label)
    gpu.up = True
    return gpu


def sampled(window, gpus, gpu, times, first=0):
    for number in range(first, first + times):
        gpu.values["utilization_ratio", ()] = number / 1000
        gpu.last_sample_monotonic_ns = number * 10**9
        gpu.memory_used_peaks.add(number * 10**9, 5.0 + number % 7)
        window.sample(gpus, 1000.0 + number)


def test_what_was_sampled_comes_back_in_order_and_the_oldest_goes():
    gpus, window = Gpus(), GpuWindow()
    gpu = busy(gpus)
    for first, times in ((0, 3), (3, POINTS), (POINTS + 3, 10)):
        sampled(window, gpus, gpu, times, first)
        told = window.curves()
        kept = range(max(0, first + times - POINTS), first + times)
        assert told["seconds"] == [1000.0 + number for number in kept]
        assert told["gpus"]["GPU-a"]["utilization_ratio"] == [number / 1000 for number in kept]
        assert told["gpus"]["GPU-a"][PEAK] == [5.0 + number % 7 for number in kept], "of each second, not the highest so far"


def test_a_gpu_that_comes_later_or_is_down_has_gaps():
    gpus, window = Gpus(), GpuWindow()
    gpu = busy(gpus)
    sampled(window, gpus, gpu, 2)
    late = busy(gpus, "GPU-b", "1")
    late.values["power_watts", ()] = 300.0
    sampled(window, gpus, gpu, 1, 2)
    gpu.mark_down("lost")
    window.sample(gpus, 1003.0)
    told = json.loads(msgspec.json.encode(window.curves()))["gpus"]
    assert told["GPU-b"]["power_watts"] == [None, None, 300.0, 300.0]
    assert told["GPU-a"]["utilization_ratio"] == [0.0, 0.001, 0.002, None]
    assert told["GPU-a"]["power_watts"] == [None] * 4


def test_a_device_that_is_no_more_takes_no_room():
    gpus, window = Gpus(), GpuWindow()
    for number in range(50):
        gpus.by_uuid.clear()
        busy(gpus, f"MIG-{number}")
        window.sample(gpus, float(number))
    assert list(window._columns) == ["MIG-49"]
    assert all(len(column) == 50 for column in window._columns["MIG-49"].values())


def test_eight_gpus_take_less_than_fifty_kilobytes():
    gpus, window = Gpus(), GpuWindow()
    for index in range(8):
        busy(gpus, f"GPU-{index}", str(index))
    for number in range(2 * POINTS):
        window.sample(gpus, float(number))
    columns = [column for kept in window._columns.values() for column in kept.values()]
    assert len(columns) == 8 * (len(CURVES) + 1)
    assert sum(len(column) * column.itemsize for column in [*columns, window._seconds]) <= 51_000
