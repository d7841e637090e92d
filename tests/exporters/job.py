"""A training job without training: it gives a State the records that hooks would write, with values that tests can name."""

from __future__ import annotations

import math
import os
import struct
import time

from gpuwatch_hooks import wire

from gpuwatch.state.identity import Hello, Identity
from gpuwatch.state.records import Media, Meta, Names, Scalar

LAYERS = ("conv1.weight", "conv1.bias", "fc.weight")


#: What the AMP probe tells of a job on a GPU.
PROBED = {
    "amp_variant": "bfloat16",
    "amp_speedup_ratio": 1.5,
    "amp_speedup_low": 1.4,
    "amp_speedup_high": 1.6,
    "amp_memory_saving_ratio": 0.25,
    "amp_base_steps_per_second": 8.0,
    "amp_steps_per_second": 12.0,
    "amp_base_peak_bytes": 4e9,
    "amp_peak_bytes": 3e9,
}


class Job:
    """One process of a run in `state`. `step(n)` records step n; every value of it can be recomputed by the functions below.

    Of a run that a daemon before had, only what its journal does not hold yet is recorded again, as intake does it.
    """

    def __init__(
        self, state, run="digits", *, rank=0, world_size=1, pid=None, layers=LAYERS, start_ns=None, step_ns=100_000_000
    ):
        self.layers = layers
        self.step_ns = step_ns
        self.start_ns = time.monotonic_ns() if start_ns is None else start_ns
        self.state = state
        self.sequence = 0
        self.n = 0
        identity = Identity(os.getuid(), os.getpid() if pid is None else pid, 0)
        hello = Hello(
            run=run,
            token="t",
            rank=rank,
            world_size=world_size,
            ring_id=1000 + rank,
            monotonic_ns=self.start_ns,
            wall_ns=1_700_000_000_000_000_000,
            torch="2.13.0",
            framework="torch",
            program="train.py",
        )
        self.run = state.open_run(hello, identity)
        self.durable = (self.run.resume_sequence, self.run.acknowledged)
        self.control(hello)
        self.control(Names("tensor", 1, 0, tuple(layers), tuple(64 for _ in layers)))
        self.control(Names("group", 1, 0, ("all", "rest")))
        self.control(Names("optimizer", 1, 0, ("SGD", "Adam")))
        self.control(Meta({"precision": "fp16", "batch_size": 32}))

    def control(self, record):
        self.n += 1
        if self.n > self.durable[1]:
            assert self.state.control(self.run, self.n, record)

    def ring(self, kind, payload, monotonic_ns):
        self.sequence += 1
        if self.sequence > self.durable[0]:
            self.state.ring(self.run, [(self.sequence, monotonic_ns, kind, payload)])

    def at(self, step):
        return self.start_ns + step * self.step_ns

    def step(self, step, *, tables=True, complete=True, optimizer=0, **values):
        now_ns = self.at(step)
        if tables:
            self.tables(step, now_ns, optimizer)
        fields = step_values(step) | values
        cells = [fields.get(name, 0.0) for name in wire.STEP_FIELDS]
        mask = sum(1 << index for index, name in enumerate(wire.STEP_FIELDS) if name in fields)
        flags = wire.STEP_COMPLETE if complete else 0
        packed = struct.pack(f"<{len(cells)}d", *cells)
        self.ring(wire.KIND_STEP, wire.pack_step(step, optimizer, flags, mask, packed, [learning_rate(step), 0.01]), now_ns)

    def tables(self, step, now_ns, optimizer=0):
        count = len(self.layers)
        for family, name in enumerate(("gradient", "weight", "update")):
            cells = [layer_value(step, layer, name, column) for layer in range(count) for column in wire.TENSOR_COLUMNS]
            head = wire.TENSORS_HEAD.pack(step, optimizer, family, 1, 0, count, 0xFF)
            self.ring(wire.KIND_TENSORS, head + struct.pack(f"<{len(cells)}f", *cells), now_ns)
        for family in (0, 1):
            counts = [bucket(step, layer, i) for layer in range(count) for i in range(wire.HISTOGRAM_BUCKETS)]
            head = wire.HISTOGRAMS_HEAD.pack(step, optimizer, family, 1, 0, count, wire.HISTOGRAM_FIRST_EXPONENT)
            self.ring(wire.KIND_HISTOGRAMS, head + struct.pack(f"<{len(counts)}I", *counts), now_ns)

    def scalar(self, tag, step, value):
        self.control((Scalar(tag, step, value, self.at(step)),))

    def media(self, kind, tag, step, shape, data):
        self.control(Media(kind, tag, step, tuple(shape), data, self.at(step)))

    def end(self, step, reason="exit"):
        self.ring(wire.KIND_END, wire.END_HEAD.pack(step, wire.END_REASONS.index(reason)), self.at(step))


def step_values(step):
    """The fields of one step; all are exact in float32, which is what TensorBoard keeps."""
    return {
        "loss": 4.0 - step / 1024,
        "loss_scale": 65536.0 if step < 50 else 32768.0,
        "skipped": 1.0 if step == 50 else 0.0,
        "loss_scale_backoffs": 1.0 if step == 50 else 0.0,
        "step_seconds": 0.125,
        "data_seconds": 0.015625,
        "forward_seconds": 0.03125,
        "backward_seconds": 0.0625,
        "optimizer_seconds": 0.0078125,
        "other_seconds": 0.0078125,
        "grad_norm": 1.0 + step / 256,
        "grad_norm_clipped": 1.0,
        "grad_absmax": 0.5 + step / 512,
        "grad_zero_ratio": 0.25,
        "grad_nonfinite_count": 3.0 if step == 50 else 0.0,
        "grad_underflow_ratio": 0.0625,
        "weight_norm": 8.0,
        "update_ratio": 0.001953125,
        "autocast_ratio": 0.75,
        "torch_allocated_bytes": float(1 << 30),
        "torch_reserved_bytes": float(1 << 31),
        "torch_allocated_peak_bytes": float(3 << 29),
        "torch_device_index": 0.0,
        "hook_seconds": 0.0009765625,
        "overhead_ratio": 0.0078125,
    }


def learning_rate(step):
    return 0.5 / (1 + step // 100)


def layer_value(step, layer, family, column):
    base = {"gradient": 1.0, "weight": 4.0, "update": 0.0078125}[family]
    return base * (1 + layer) * (1 + wire.TENSOR_COLUMNS.index(column)) + (step % 64) / 64


def bucket(step, layer, index):
    """A bell over the exponents -16 to -4, with a few zeros in the first bucket."""
    if index == 0:
        return 5
    exponent = wire.HISTOGRAM_FIRST_EXPONENT + index
    return int(1000 * math.exp(-((exponent + 10 - layer + (step % 40) / 20) ** 2) / 8))
