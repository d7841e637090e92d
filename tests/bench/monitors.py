"""The daemon beside nvitop-exporter, on the same fake 8 x H100 with 40 live processes, in the same minute.

Memory is PSS with child processes, CPU the processes' own clocks (children included). The fake answers in no time: what is
measured is the monitors, not the driver. First nobody asks them anything; then a training run begins (150 small tensors, ten
steps a second, every statistic of the hooks), which the daemon records and nvitop-exporter knows nothing of; then both are
scraped once a second as well.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from harness import Bench, percentile  # noqa: E402  # a bench is a script, and scripts find the repository themselves

from tests.fake_nvml.driver import FakeDriver, h100  # noqa: E402

GPUS, PROCESSES = 8, 40
START_SECONDS = 60.0

TRAINING = """
import time, torch, gpuwatch
torch.set_num_threads(1)
model = torch.nn.Sequential(*[torch.nn.Linear(16, 16) for _ in range(75)])
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
watch = gpuwatch.watch(model, optimizer)
for _ in range(100000):
    optimizer.zero_grad()
    model(torch.randn(4, 16)).square().mean().backward()
    optimizer.step()
    time.sleep(0.1)
"""


class Monitor:
    """One exporter: its processes, what they take, and its page."""

    def __init__(self, name, command, url, environment):
        self.name, self.url = name, url
        began = time.monotonic()
        self.process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
        while b'="GPU-' not in self._body() and time.monotonic() - began < START_SECONDS:
            time.sleep(0.02)
        self.start_seconds = time.monotonic() - began
        assert self.process.poll() is None, f"{name} ended"

    def pids(self):
        """Its process and the processes below it."""
        found = [self.process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        return found

    def cpu_seconds(self):
        # A process's CPU clock (clock_getcpuclockid): nanoseconds, and dead threads count too.
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.pids())

    def memory_mib(self, kind):
        pattern = re.compile(rf"^{kind}:\s+(\d+)", re.MULTILINE)
        return sum(int(pattern.search(Path(f"/proc/{pid}/smaps_rollup").read_text())[1]) for pid in self.pids()) / 1024

    def scrape(self):
        """(seconds, bytes, series)."""
        began = time.perf_counter()
        body = self._body()
        return time.perf_counter() - began, len(body), len(re.findall(rb"^[a-z]", body, re.MULTILINE))

    def _body(self):
        with contextlib.suppress(OSError), urllib.request.urlopen(self.url, timeout=10) as response:
            return response.read()
        return b""


def free_port():
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


def scenario(folder, jobs):
    """Eight busy H100: power, clocks and utilization move, counters run, five processes on each."""
    gpus = [h100(index) for index in range(GPUS)]
    for index, gpu in enumerate(gpus):
        gpu.get("memory", 85520809984, 503316480, 40 << 30)
        gpu.get("nvmlDeviceGetUtilizationRates", 60, 30)
        gpu.lines += [
            f"wave nvmlDeviceGetUtilizationRates 39 {3 + index}",
            f"wave nvmlDeviceGetPowerUsage 50000 {4 + index}",
            f"wave nvmlDeviceGetTemperature:0 9 {20 + index}",
            "wave nvmlDeviceGetClockInfo:1 300 2",
            "rate nvmlDeviceGetTotalEnergyConsumption 300000",
            "rate field:197 50e6",
            "rate field:198 80e6",
            # 18 NVLinks, as in a machine with eight of them (the recorded one had a single GPU)
            "get field:91 18 1",
            *(f"get field:{field} 1000000 3" for field in (138, 139, 140, 141)),
            *(f"rate field:{field} 1e6" for field in (138, 139, 140, 141)),
        ]
    for number, job in enumerate(jobs):
        gpus[number % GPUS].process(job.pid, (1 + number % 5) << 30, sm_percent=10 + number % 5)
    fake = FakeDriver(folder, gpus)
    return {name: value for name, value in fake.environment.items() if name != "FAKE_NVML_COUNTS"}  # counting takes time


def daemon(name, folder, fake, **sampling):
    """A daemon with these settings of [sampling]; its socket is FOLDER/NAME/s."""
    home, port = folder / name, free_port()
    home.mkdir()
    settings = {f"GPUWATCH_SAMPLING_{key.upper()}": str(value) for key, value in sampling.items()}
    command = [sys.executable, "-m", "gpuwatch", "daemon", "--logdir", home / "runs", "--socket", home / "s"]
    url = f"http://127.0.0.1:{port}/metrics"
    return Monitor(name, [*command, "--listen", f"127.0.0.1:{port}"], url, {**fake, **settings})


def cpu_ms_per_second(monitors, seconds, while_waiting=lambda _tick: None):
    """{name: CPU ms/s} of all of them over the same stretch of time; `while_waiting(tick)` is called once a second."""
    before, began = [monitor.cpu_seconds() for monitor in monitors], time.monotonic()
    for tick in range(int(seconds)):
        while_waiting(tick)
        time.sleep(max(0.0, began + tick + 1 - time.monotonic()))
    elapsed = time.monotonic() - began
    return {monitor.name: (monitor.cpu_seconds() - cpu) / elapsed * 1e3 for monitor, cpu in zip(monitors, before, strict=True)}


def observe(monitors, begin_run, seconds):
    """{name: measured}; `begin_run` starts the training run and returns when it has arrived."""
    alone = cpu_ms_per_second(monitors, seconds)
    begin_run()
    with_run = cpu_ms_per_second(monitors, seconds)
    scrapes = {monitor.name: [] for monitor in monitors}

    def scrape(_tick):
        for monitor in monitors:
            scrapes[monitor.name].append(monitor.scrape())

    scraped = cpu_ms_per_second(monitors, 2 * seconds, scrape)
    found = {}
    for monitor in monitors:
        milliseconds = [1e3 * each[0] for each in scrapes[monitor.name]]
        found[monitor.name] = {
            "pss": monitor.memory_mib("Pss"),
            "rss": monitor.memory_mib("Rss"),
            "alone": alone[monitor.name],
            "with_run": with_run[monitor.name],
            "scraped": scraped[monitor.name],
            "p50": statistics.median(milliseconds),
            "p99": percentile(milliseconds, 99),
            "series": scrapes[monitor.name][-1][2],
            "kilobytes": scrapes[monitor.name][-1][1] / 1e3,
            "start": monitor.start_seconds,
        }
    return found


def main():
    bench = Bench(
        "monitors",
        "The daemon beside nvitop-exporter (fake 8 x H100, 40 processes)",
        packages=("nvitop-exporter", "nvidia-ml-py"),
    )
    started = []
    with tempfile.TemporaryDirectory(prefix="gpuwatch-bench-") as name:
        folder = Path(name)
        try:
            started += [subprocess.Popen(["sleep", "3600"]) for _ in range(PROCESSES)]
            fake, port = scenario(folder, started), free_port()
            exporter = Path(sys.executable).with_name("nvitop-exporter")
            peer_command = [exporter, "--bind-address", "127.0.0.1", "--port", str(port), "--interval", "1"]
            ours = daemon("gpuwatch", folder, fake, memory_hz=10, fast_hz=1)
            started.append(ours.process)
            default = daemon("gpuwatch-default", folder, fake)
            started.append(default.process)
            peer = Monitor("nvitop-exporter", peer_command, f"http://127.0.0.1:{port}/metrics", fake)
            started.append(peer.process)

            def begin_run():
                environment = {**os.environ, "GPUWATCH_SOCKET": str(folder / "gpuwatch" / "s")}
                started.append(subprocess.Popen([sys.executable, "-c", TRAINING], env=environment))
                deadline = time.monotonic() + START_SECONDS
                while b"gpuwatch_train_steps_total{" not in ours._body():
                    assert time.monotonic() < deadline, "the training run did not arrive"
                    time.sleep(0.2)
                time.sleep(8)  # while the daemon does not know a run's pace it looks at its ring 20 times a second

            time.sleep(2 if bench.quick else 10)
            found = observe([ours, default, peer], begin_run, 5 if bench.quick else 30)
        finally:
            for process in started:
                process.terminate()
            for process in started:
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(10)
    report(bench, found)
    raise SystemExit(bench.finish())


def report(bench, found):
    columns = {
        "pss": "PSS MiB", "rss": "RSS MiB", "alone": "CPU ms/s", "with_run": "with a run", "scraped": "and scraped at 1 Hz",
        "p50": "scrape p50 ms", "p99": "p99 ms", "series": "series", "kilobytes": "kB", "start": "start s",
    }  # fmt: skip
    names = {
        "gpuwatch": "gpuwatch, 10 Hz memory, 1 Hz the rest",
        "gpuwatch-default": "gpuwatch, defaults (50 Hz, 10 Hz), no run",
        "nvitop-exporter": "nvitop-exporter, 1 Hz",
    }
    rows = [(names[name], *(float(entry[column]) for column in columns)) for name, entry in found.items()]
    bench.table("Side by side, children included", ("monitor", *columns.values()), rows)
    ours, peer = found["gpuwatch"], found["nvitop-exporter"]
    bench.number("memory (PSS), of nvitop-exporter's", ours["pss"] / peer["pss"], "ratio", at_most=1.5, note="with a run")
    bench.number("CPU, of nvitop-exporter's", ours["alone"] / peer["alone"], "ratio", at_most=0.5)
    bench.number("CPU, of nvitop-exporter's", ours["with_run"] / peer["with_run"], "ratio", at_most=0.5, note="with a run")
    bench.number(
        "CPU, of nvitop-exporter's", ours["scraped"] / peer["scraped"], "ratio", at_most=0.5, note="with a run, scraped"
    )
    bench.number("scrape p50, of nvitop-exporter's", ours["p50"] / peer["p50"], "ratio", at_most=0.25)
    bench.number("start, to the first scrape with a GPU", ours["start"], "s", at_most=0.5)


if __name__ == "__main__":
    main()
