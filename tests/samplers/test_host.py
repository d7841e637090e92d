"""The host sampler against psutil and against files of our own."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from gpuwatch.samplers.host import HostSampler


def test_memory_agrees_with_psutil():
    sample, memory = HostSampler().sample(), psutil.virtual_memory()
    assert sample.memory_size_bytes == memory.total
    assert sample.memory_used_bytes == pytest.approx(memory.total - memory.available, rel=0.1, abs=64 << 20)


def test_a_training_process_agrees_with_psutil():
    code = "import os; b = bytearray(50 << 20); t = os.times()\nwhile os.times().user < 0.3: pass\nprint(flush=True); input()"
    job = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        job.stdout.readline()
        found, process = HostSampler().sample([job.pid]).processes[job.pid], psutil.Process(job.pid)
        times = process.cpu_times()
        assert found.cpu_seconds == pytest.approx(times.user + times.system, abs=0.05)
        assert found.cpu_seconds >= 0.25
        assert found.resident_bytes == pytest.approx(process.memory_info().rss, rel=0.02)
        assert found.resident_bytes > 50 << 20
        assert found.read_bytes == process.io_counters().read_bytes
    finally:
        job.kill()
        job.communicate()
    assert HostSampler().sample([job.pid]).processes == {}


def test_a_zombie_is_no_training_process():
    job = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 20
    while psutil.Process(job.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.01)
    assert HostSampler().sample([job.pid]).processes == {}
    job.wait(10)


def write(folder, stat):
    (folder / "stat").write_text(stat)
    (folder / "meminfo").write_text("MemTotal:  1000 kB\nMemFree:  100 kB\nMemAvailable:  400 kB\nBuffers: 1 kB\n")


def test_processor_utilization_between_two_samples(tmp_path):
    sampler = HostSampler(str(tmp_path))
    write(tmp_path, "cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 1 1 1\n")
    first = sampler.sample()
    assert first.cpu_utilization_ratio is None
    assert (first.memory_used_bytes, first.memory_size_bytes) == (600 * 1024, 1000 * 1024)
    write(tmp_path, "cpu  150 10 110 800 120 3 5 2 90 0\n")  # 80 of 200 ticks busy; guest time counts once
    assert sampler.sample().cpu_utilization_ratio == pytest.approx(80 / 200)
    assert sampler.sample().cpu_utilization_ratio is None  # no time has gone by
    write(tmp_path, "cpu  150 10 110 790 121 3 5 2 90 0\n")  # idle time went back, as kernels have let it
    assert sampler.sample().cpu_utilization_ratio is None


def test_an_odd_name_and_a_process_that_is_not_ours(tmp_path):
    (tmp_path / "77").mkdir()
    fields = "S 1 1 1 0 -1 0 0 0 0 0 150 50 0 0 20 0 1 0 12345 1000000 25 0 0"
    (tmp_path / "77" / "stat").write_text(f"77 (a) b (c) {fields}\n")
    write(tmp_path, "cpu  1 1 1 1 1 1 1 1\n")
    process = HostSampler(str(tmp_path)).sample([77, 78]).processes
    assert list(process) == [77]
    assert process[77].cpu_seconds == pytest.approx(200 / os.sysconf("SC_CLK_TCK"))
    assert process[77].resident_bytes == 25 * os.sysconf("SC_PAGE_SIZE")
    assert process[77].read_bytes is None


def test_nothing_to_read_is_no_error(tmp_path):
    sample = HostSampler(str(tmp_path)).sample([1])
    assert (sample.cpu_utilization_ratio, sample.memory_size_bytes, sample.processes) == (None, 0, {})
