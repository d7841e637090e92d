"""What recording one step costs the training thread once its numbers are on the host: packing, the ring, nothing else."""

import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from gpuwatch_hooks import wire
from gpuwatch_hooks.part import Part

from tests.bench.bench_overhead import Hooks
from tests.bench.harness import Bench, percentile
from tests.hooks.recording import RecordingSession

TENSORS = 150


class OneStep:
    """Records the same step over and over through the real part, reading, guard and ring."""

    def __init__(self):
        self.session = RecordingSession(slots=wire.DEFAULT_SLOTS)
        recorder = self.session.recorder
        self.gradients = recorder.by_name["gradients"]
        self.gradients.install(recorder)
        parameters = [torch.nn.Parameter(torch.zeros(4)) for _ in range(TENSORS)]
        self.optimizer = torch.optim.SGD(parameters, lr=0.1)
        self.entry = recorder.roster.entry(self.optimizer)
        generator = torch.Generator().manual_seed(0)
        rows = torch.rand(TENSORS, 8, generator=generator, dtype=torch.float64)
        rows[:, 6] = 0.0  # the non-finite count of a healthy step
        self.rows = rows.reshape(-1).tolist()
        self.buckets = torch.randint(1000, (TENSORS, 64), generator=generator).reshape(-1).tolist()

    def nanoseconds(self, step, *, histograms=False, clock=time.perf_counter_ns):
        """One step's record: 150 tensors x 8 statistics, the STEP fields, and if asked for 150 histograms."""
        part = Part(self.entry)
        part.step = step
        part.gradients = self.gradients.begin(self.entry)
        reading = part.gradients.reading
        reading.threshold = True
        reading.count(range(TENSORS), (4,) * TENSORS)
        places = range(TENSORS)
        began = clock()
        reading.take_rows(places, self.rows)
        if histograms:
            reading.take_histograms(places, self.buckets)
        part.at_end(self.gradients._finish)
        part.close()
        part.write(self.session, self.session.guard)
        return clock() - began


def series(one, steps, **options):
    """Microseconds of `steps` records, after a warm-up."""
    for step in range(1, 200):
        one.nanoseconds(step, **options)
    return [one.nanoseconds(step, **options) / 1000 for step in range(1, steps + 1)]


def beside_a_busy_thread(one, steps):
    """The same while another Python thread never rests: whoever gives up the GIL while recording waits 5 ms for it.

    Between two records the GIL is given up, as every operator of a training step does: a record that follows another at once
    would end beyond its 5 ms slice now and then, whatever it did.
    """
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            sum(range(500))

    thread = threading.Thread(target=busy, daemon=True)
    thread.start()
    try:
        found = []
        for step in range(1, steps + 1):
            time.sleep(0)
            found.append(one.nanoseconds(step) / 1000)
        return found
    finally:
        stop.set()
        thread.join()


def whole_hook_set(steps):
    """Microseconds that all hooks take in each step of 150 tensors of 4 entries: the cost of a step, not of its bytes."""
    parameters = [torch.nn.Parameter(torch.randn(4)) for _ in range(TENSORS)]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    hooks = Hooks(0.01)
    hooks.session.adjust_every(1_000_000)
    found = hooks.host_microseconds()

    def step():
        optimizer.zero_grad()
        torch.cat(parameters).square().sum().backward()
        optimizer.step()

    with hooks.installed():
        for _ in range(100 + steps):
            step()
    assert hooks.session.faults == [], hooks.session.faults
    return found[100:]


def main():
    bench = Bench("recording", f"Recording one step: {TENSORS} tensors x 8 statistics, on the training thread")
    steps = 2_000 if bench.quick else 20_000
    one = OneStep()
    alone = series(one, steps)
    processor = series(one, steps, clock=time.thread_time_ns)
    busy = beside_a_busy_thread(one, steps // 4)
    with_histograms = series(one, steps // 4, histograms=True)
    assert one.session.faults == [], one.session.faults
    bench.number("record, p50", percentile(alone, 50), "us", at_most=50)
    bench.number("record, p99", percentile(alone, 99), "us", at_most=150)
    bench.number(
        "record, processor time, p99", percentile(processor, 99), "us", at_most=150, note="what else runs here left out"
    )
    bench.number("record beside one busy Python thread, p50", percentile(busy, 50), "us")
    bench.number("record beside one busy Python thread, p99", percentile(busy, 99), "us", at_most=300)
    bench.number("record with 150 histograms of 64 buckets, p50", percentile(with_histograms, 50), "us", note="sampled steps")
    everything = whole_hook_set(steps // 10)
    bench.number(
        "all hooks of a step of 150 tiny tensors, p50", percentile(everything, 50), "us", at_most=150, note="norms included"
    )
    bench.number("the same, fastest", min(everything), "us", note="what is left without other processes")
    bench.number("fastest record", min(alone), "us", note="what is left without other processes")
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
