"""What one step costs the daemon's intake thread behind the ring: journal, decoding, merging, counters."""

from __future__ import annotations

import sys
import tempfile
import time
from array import array
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from gpuwatch_hooks import wire  # noqa: E402  # a bench is a script, and scripts find the repository themselves
from harness import Bench, percentile  # noqa: E402

from gpuwatch.state.identity import Identity  # noqa: E402
from gpuwatch.state.journal_reader import JournalReader  # noqa: E402
from gpuwatch.state.records import Names  # noqa: E402
from gpuwatch.state.store import State  # noqa: E402
from tests.state.recorded import hello, step_payload, tensors_payload  # noqa: E402

TENSORS = 150
NORMS = [0.5 + 0.01 * i for i in range(TENSORS)]
VALUES = dict.fromkeys(wire.STEP_FIELDS[:24], 0.125)


def histograms_payloads(step: int) -> list[bytes]:
    """150 histograms of 64 buckets, split as the hooks split them over slots."""
    per_slot = wire.rows_per_slot(4 * wire.HISTOGRAM_BUCKETS, wire.HISTOGRAMS_HEAD.size)
    payloads = []
    for first in range(0, TENSORS, per_slot):
        count = min(per_slot, TENSORS - first)
        head = wire.HISTOGRAMS_HEAD.pack(step, 0, 0, 1, first, count, wire.HISTOGRAM_FIRST_EXPONENT)
        payloads.append(head + array("I", [3] * count * wire.HISTOGRAM_BUCKETS).tobytes())
    return payloads


def records(step: int, *, layers: bool, histograms: bool) -> list[tuple[int, bytes]]:
    found = [(wire.KIND_TENSORS, tensors_payload(step, NORMS))] if layers else []
    found += [(wire.KIND_HISTOGRAMS, payload) for payload in histograms_payloads(step)] if histograms else []
    return [*found, (wire.KIND_STEP, step_payload(step, VALUES))]


def costs(folder: str, steps: int, batch: int, **kinds: bool) -> tuple[list[float], float, float]:
    """Microseconds a step (by batch, as a poll brings them), journal bytes a step, and journal MB/s of reading it back."""
    state = State(folder)
    run = state.open_run(hello(), Identity(0, 1, 1))
    state.control(run, 1, Names("tensor", 1, 0, tuple(f"layer{i}.weight" for i in range(TENSORS)), (4096,) * TENSORS))
    sequence, taken = 0, []
    for first in range(1, steps + 1, batch):
        slots = []
        for step in range(first, first + batch):
            for kind, payload in records(step, **kinds):
                sequence += 1
                slots.append((sequence, time.monotonic_ns(), kind, payload))
        start = time.perf_counter()
        state.ring(run, slots)
        taken.append((time.perf_counter() - start) / batch * 1e6)
    written = run.journal.written_bytes
    reader = JournalReader(f"{run.path}/journal")
    start = time.perf_counter()
    while reader.read():
        pass
    read_seconds = time.perf_counter() - start
    reader.close()
    state.close()
    return taken, written / steps, written / read_seconds / 1e6


def main() -> int:
    bench = Bench("state", "One step into journal and state, 150 tensors", packages=("msgspec",))
    steps = 400 if bench.quick else 4000
    rows = []
    for name, kinds in (
        ("step fields only", {"layers": False, "histograms": False}),
        ("and a table of 150 tensors", {"layers": True, "histograms": False}),
        ("and 150 histograms", {"layers": True, "histograms": True}),
    ):
        for batch in (1, 10):
            with tempfile.TemporaryDirectory() as folder:
                taken, size, speed = costs(folder, steps, batch, **kinds)
            rows.append((name, batch, percentile(taken, 50), percentile(taken, 99), size, speed))
    columns = ("record", "steps a poll", "us a step, p50", "p99", "journal bytes a step", "read back, MB/s")
    bench.table("State.ring", columns, rows)
    bench.number("a step with 150 tensors, p50", rows[2][2], "us", at_most=150)
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
