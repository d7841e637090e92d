"""The share of matrix products: real traces of the CPU against torch's own table, a GPU's kernels as Kineto writes them."""

import gzip
import json

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from gpuwatch.history import matrix_share

STEPS = 2


def traced(model, inputs):
    """(profiler, its events as the journal has them) of two forward and backward passes."""
    torch.set_num_threads(1)
    for _ in range(2):
        model(inputs).square().mean().backward()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(STEPS):
            model(inputs).square().mean().backward()
    return profiler


def events_of(profiler, tmp_path):
    path = tmp_path / "trace.json"
    profiler.export_chrome_trace(str(path))
    return matrix_share._events(gzip.compress(path.read_bytes()))


@pytest.mark.parametrize(
    ("model", "inputs", "operators"),
    [
        (
            nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)),
            torch.randn(256, 512),
            {"aten::mm", "aten::addmm"},
        ),
        (nn.Conv2d(16, 32, 3), torch.randn(8, 16, 32, 32), {"aten::convolution", "aten::convolution_backward"}),
        (nn.MultiheadAttention(64, 4, batch_first=True), None, None),
        (nn.Sequential(nn.LayerNorm(4096), nn.GELU()), torch.randn(256, 4096), set()),
    ],
)
def test_a_trace_of_the_cpu_agrees_with_the_profilers_own_table(tmp_path, model, inputs, operators):
    if inputs is None:
        attention, inputs = model, torch.randn(8, 64, 64)
        model = lambda x: attention(x, x, x, need_weights=False)[0]  # noqa: E731
        operators = {"aten::mm", "aten::bmm", "aten::addmm", "aten::_scaled_dot_product_flash_attention_for_cpu"}
        operators |= {"aten::_scaled_dot_product_flash_attention_for_cpu_backward"}
    profiler = traced(model, inputs)
    events = events_of(profiler, tmp_path)
    window = next(event.dur for event in events if event.cat == "Trace")
    expected = sum(row.cpu_time_total for row in profiler.key_averages() if row.key in operators) / window
    share = matrix_share.of_events(events, STEPS, 7, None)
    assert (share.steps, share.step, share.on_gpu) == (STEPS, 7, False)
    assert share.ratio == pytest.approx(expected, rel=0.02, abs=1e-3)
    if operators:
        assert share.ratio > 0.1
        assert share.most == pytest.approx(1 / (1 - share.ratio))


def test_the_share_is_of_a_step_that_was_not_traced_where_that_is_shorter(tmp_path):
    events = events_of(traced(nn.Linear(64, 64), torch.randn(8, 64)), tmp_path)
    window = next(event.dur for event in events if event.cat == "Trace") / 1e6 / STEPS
    whole = matrix_share.of_events(events, STEPS, 1, None).ratio
    assert matrix_share.of_events(events, STEPS, 1, 2 * window).ratio == whole
    assert matrix_share.of_events(events, STEPS, 1, window * whole / 2).ratio == 1.0


def event(cat, name, begin, lasts, external=None, tid=7):
    arguments = {} if external is None else {"External id": external}
    return {"ph": "X", "cat": cat, "name": name, "pid": 0, "tid": tid, "ts": begin, "dur": lasts, "args": arguments}


def test_kernels_of_a_gpu_count_by_the_operator_that_launched_them():
    events = [
        event("Trace", "PyTorch Profiler (0)", 0, 1000),
        event("cpu_op", "aten::addmm", 0, 20, 1),
        event("cpu_op", "aten::relu", 20, 5, 2),
        event("cpu_op", "aten::cudnn_convolution", 30, 5, 3),
        event("kernel", "ampere_sgemm_128x64_tn", 100, 200, 1),
        event("kernel", "splitKreduce_kernel", 300, 50, 1),
        event("kernel", "void at::native::vectorized_elementwise_kernel<4>", 350, 300, 2),
        event("kernel", "some_name_that_tells_nothing", 600, 100, 3),
        event("kernel", "sm90_xmma_gemm_f32f32", 650, 100, None, tid=9),  # on another stream, half of it beside the last
        event("gpu_memcpy", "Memcpy HtoD", 800, 100),
    ]
    packed = gzip.compress(json.dumps({"traceEvents": events}).encode())
    share = matrix_share.of_events(matrix_share._events(packed), 1, 1, None)
    assert share.on_gpu
    assert share.ratio == pytest.approx((200 + 50 + 100 + 50) / 1000)


def test_a_trace_without_a_length_says_nothing():
    assert matrix_share.of_events([], 3, 1, None) is None
