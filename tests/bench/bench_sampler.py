"""The GPU sampler alone: which spikes of memory it catches, in real time, and what it costs.

Spikes: 30 ms of 20 GiB, 104 of them (--quick: 32) on eight GPUs, a little more than a second apart on each, so they fall on
every moment of a sampling second; heights differ, so that each is told from the others. Beside it a sampler that reads once a
second, as others do at best. Cost: the children's processor time meanwhile, with eight GPUs and forty processes on them; the
fake driver answers in no time.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from harness import Bench  # noqa: E402  # a bench is a script, and scripts find the repository themselves

from gpuwatch.config import Sampling  # noqa: E402
from gpuwatch.samplers.supervisor import Supervisor  # noqa: E402
from gpuwatch.state.gpus import Gpus  # noqa: E402
from tests.fake_nvml.driver import H100_STATIC, FakeDriver, h100  # noqa: E402

GPUS, PROCESSES = 8, 40
SPIKE_SECONDS, PERIOD_SECONDS, SHIFT_SECONDS = 0.03, 1.053, 0.131
BASE_BYTES, SPIKE_BYTES, STEP_BYTES = 1 << 30, 20 << 30, 1 << 20
START_SECONDS = 2.5  # the child's own start, and its first round


class Sampled:
    """A supervisor with its child, and every height of memory that it reported as the peak of a second."""

    def __init__(self, name, **sampling):
        self.name = name
        self.gpus = Gpus()
        self.supervisor = Supervisor(self.gpus, Sampling(**sampling))
        self.heights = set()

    def turn(self):
        self.supervisor.turn()
        for gpu in self.gpus:
            self.heights.update(gpu.memory_used_peaks._values)

    def cpu_seconds(self):
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.supervisor.child_pids())


def scenario(folder, spikes):
    """Eight GPUs with `spikes` each, higher ones first: no spike is hidden behind one that came before it."""
    gpus = [h100(index) for index in range(GPUS)]
    total = H100_STATIC["memory_v2"]["total"]
    heights = set()
    for index, gpu in enumerate(gpus):
        gpu.lines = [line for line in gpu.lines if not line.startswith("get memory ")]
        gpu.lines.append(f"at 0 memory {total} 0 {BASE_BYTES}")
        for number in range(spikes):
            at = START_SECONDS + number * PERIOD_SECONDS + index * SHIFT_SECONDS
            height = BASE_BYTES + SPIKE_BYTES - (number * GPUS + index) * STEP_BYTES
            heights.add(height)
            gpu.lines += [
                f"at {at:.4f} memory {total} 0 {height}",
                f"at {at + SPIKE_SECONDS:.4f} memory {total} 0 {BASE_BYTES}",
            ]
    for number in range(PROCESSES):
        gpus[number % GPUS].process(3_000_000 + number, 1 << 28, sm_percent=1)
    return FakeDriver(folder, gpus), heights


def main():
    bench = Bench("sampler", "The GPU sampler (fake 8 x H100, 40 processes)", packages=("nvidia-ml-py",))
    spikes = 4 if bench.quick else 13  # on each GPU
    with tempfile.TemporaryDirectory(prefix="gpuwatch-bench-") as name:
        fake, heights = scenario(Path(name), spikes)
        os.environ.update({key: value for key, value in fake.environment.items() if key != "FAKE_NVML_COUNTS"})
        fast = Sampled("50 Hz, the default")
        slow = Sampled("1 Hz", memory_hz=1, fast_hz=1)
        both = (fast, slow)
        try:
            while time.monotonic() < fake.epoch + START_SECONDS:
                for each in both:
                    each.turn()
                time.sleep(0.02)
            began, before = time.monotonic(), [each.cpu_seconds() for each in both]
            gap_seconds = 0.0
            while time.monotonic() < fake.epoch + START_SECONDS + (spikes + 1) * PERIOD_SECONDS + 1.5:
                for each in both:
                    each.turn()
                gap_seconds = max(gap_seconds, fast.gpus.memory_gap_seconds or 0.0)
                time.sleep(0.02)
            seconds = time.monotonic() - began
            spent = [(each.cpu_seconds() - cpu) / seconds * 1e3 for each, cpu in zip(both, before, strict=True)]
        finally:
            for each in both:
                each.supervisor.close(5)
    caught = [len(each.heights & heights) for each in both]
    rows = [(each.name, found, len(heights), cpu) for each, found, cpu in zip(both, caught, spent, strict=True)]
    bench.table("Spikes of 30 ms", ("memory is read at", "caught", "of", "child's CPU ms/s"), rows)
    bench.number("spikes caught", 100 * caught[0] / len(heights), "%", at_least=95)
    bench.number("longest time between two readings of memory", 1e3 * gap_seconds, "ms", note="30 ms and more may miss one")
    bench.number("CPU of sampling at the defaults", spent[0], "ms/s", at_most=20)
    bench.number("CPU of one of ten samples a second", spent[0] / 10, "ms", at_most=2)
    raise SystemExit(bench.finish())


if __name__ == "__main__":
    main()
