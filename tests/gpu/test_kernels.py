"""The fused kernel on a real device: every statistic against the slow twin, and never a wait."""

import functools
import math

import pytest
import torch
from gpuwatch_hooks.kernels import chunks, followed, nvrtc, triton_kernel
from gpuwatch_hooks.readback import contents
from torch import nn

from tests.gpu.pretended import dry, smaller
from tests.hooks.kernels import interpreted, twin
from tests.hooks.kernels.test_fused import CASES, wanted_row
from tests.hooks.kernels.test_statistics import assert_row
from tests.hooks.recording import recording

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@functools.cache
def loaded(name):
    return {"nvrtc": nvrtc, "triton": triton_kernel}[name].load(torch.cuda.current_device())


NO_TRITON = pytest.mark.skipif(interpreted.absent() and not dry(), reason="no Triton: it comes with torch for CUDA")


@pytest.fixture(params=["nvrtc", pytest.param("triton", marks=NO_TRITON)])
def kernel(request):
    return loaded(request.param)


def answers(kernel, tensors, **options):
    answer = kernel.measure(tensors, **options)
    rows, counts = chunks.decode(contents(answer.cpu()), len(tensors))
    split = None if counts is None else [list(counts[at : at + 64]) for at in range(0, len(counts), 64)]
    return [list(rows[at : at + 8]) for at in range(0, len(rows), 8)], split


def double(value):
    return torch.tensor(value, dtype=torch.float64, device="cuda")


def on_device(tensor):
    """The same entries in the same order of memory."""
    return torch.empty_like(tensor, device="cuda").copy_(tensor)


@pytest.mark.parametrize("name", CASES)
def test_every_statistic_and_the_histogram(kernel, name):
    (row,), (counts,) = answers(kernel, [on_device(CASES[name])], threshold=double(1e-4), histograms=True)
    assert_row(row, wanted_row(name, threshold=1e-4))
    assert counts == twin.histogram(twin.values(CASES[name]))


def test_all_at_once(kernel):
    rows, counts = answers(kernel, [on_device(tensor) for tensor in CASES.values()], histograms=True)
    for name, row, found in zip(CASES, rows, counts, strict=True):
        assert_row(row, wanted_row(name))
        assert found == twin.histogram(twin.values(CASES[name])), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_tensors_against_float64_on_the_device(kernel, dtype):
    tensor = (torch.randn(smaller(50_000_003, 200_003), device="cuda") * 1e-3).to(dtype)
    (row,), (counts,) = answers(kernel, [tensor], histograms=True)
    wide = tensor.double()
    wanted = [wide.norm(), wide.abs().max(), wide.abs().mean(), wide.mean(), wide.std(correction=0)]
    for place, (value, want) in enumerate(zip(row, wanted, strict=False)):
        assert value == pytest.approx(want.item(), rel=1e-5, abs=1e-10 if place == 3 else 0.0)
    assert row[5] == (tensor == 0).double().mean().item()
    assert sum(counts) == tensor.numel()


def test_the_same_bits_every_time(kernel):
    tensors = [torch.randn(smaller(3_000_000, 70_000), device="cuda"), torch.randn(777, device="cuda").bfloat16()]
    first = kernel.measure(tensors, histograms=True).cpu()
    for _ in range(20):
        assert torch.equal(kernel.measure(tensors, histograms=True).cpu(), first)


@pytest.mark.parametrize("offset", range(9))
def test_misaligned(kernel, offset):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        memory = torch.randn(400, device="cuda").to(dtype)
        tensors = [memory[offset : offset + length] for length in (*range(1, 20), 100, 331)]
        rows, counts = answers(kernel, tensors, histograms=True)
        for tensor, row, found in zip(tensors, rows, counts, strict=True):
            assert_row(row, twin.row(twin.values(tensor.cpu())))
            assert found == twin.histogram(twin.values(tensor.cpu()))


def test_nothing_waits(kernel):
    tensors = [torch.randn(100_000, device="cuda"), torch.randn(50, device="cuda").half()]
    kernel.measure(tensors, histograms=True)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            moved = [tensor.clone() for tensor in tensors]  # other addresses: they are uploaded
            answer = kernel.measure(moved, scale=None, histograms=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert chunks.decode(contents(answer.cpu()), 2)[0][0] == pytest.approx(tensors[0].norm().item(), rel=1e-5)


def test_the_answer_is_of_the_moment_although_the_tensors_change_at_once(kernel):
    """Everything is queued in order: what is freed, overwritten or given out again afterwards does not matter."""
    wanted, found = [], []
    for step in range(30):
        tensor = torch.full((smaller(1 << 20, 1 << 12),), float(step + 1), device="cuda")
        found.append(kernel.measure([tensor]))
        wanted.append(smaller(1024.0, 64.0) * (step + 1))
        tensor.fill_(-1e30)
        del tensor
    norms = [chunks.decode(contents(answer.cpu()), 1)[0][0] for answer in found]
    assert norms == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_how_far_weights_moved(kernel, dtype):
    sizes, strides = (1, 4096, smaller(3_000_001, 30_001), 777), (1, 1, 31, 3)
    tensors = [torch.randn(size, device="cuda").to(dtype) for size in sizes]
    before = [tensor.double() for tensor in tensors]
    kept = kernel.followed.keep(tensors, strides)
    for tensor in tensors:
        tensor.mul_(0.99)
    updates, weights, bad = followed.decode(contents(kernel.followed.compare(kept, tensors).cpu()))
    for old, new, stride, *found in zip(before, tensors, strides, updates, weights, strict=True):
        wanted = [(new.double() - old)[::stride].norm().item(), old[::stride].norm().item()]
        assert found == pytest.approx(wanted, rel=1e-9)
    assert list(bad) == [0.0] * len(tensors)


def test_following_weights_waits_for_nothing(kernel):
    tensors = [torch.randn(100_000, device="cuda"), torch.randn(50, device="cuda").half()]
    kernel.followed.compare(kernel.followed.keep(tensors, (31, 1)), tensors)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            tensors = [tensor.clone() for tensor in tensors]
            answer = kernel.followed.compare(kernel.followed.keep(tensors, (31, 1)), tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert list(followed.decode(contents(answer.cpu()))[0]) == [0.0, 0.0]


def test_streams_have_tables_of_their_own(kernel):
    tensors = [torch.randn(500_000, device="cuda") for _ in range(3)]
    wanted = [tensor.norm().item() for tensor in tensors]
    for stream in (torch.cuda.Stream(), torch.cuda.current_stream(), torch.cuda.Stream()):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            answer = kernel.measure(tensors)
        stream.synchronize()
        rows = chunks.decode(contents(answer.cpu()), 3)[0]
        assert list(rows[::8]) == pytest.approx(wanted, rel=1e-5)


def test_loading_while_a_graph_is_captured_does_not_spoil_it():
    import threading

    static = torch.ones(100, device="cuda")
    errors = []

    def load():
        try:
            nvrtc.load(torch.cuda.current_device())
        except Exception as error:
            errors.append(error)

    nvrtc.load(torch.cuda.current_device())  # compiled: only the module is loaded below
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        thread = threading.Thread(target=load)
        thread.start()
        thread.join(60)
        static.mul_(2.0)
    graph.replay()
    torch.cuda.synchronize()
    assert errors == []
    assert static.sum().item() == 200.0


@pytest.mark.parametrize("precision", ["float32", "bfloat16 autocast", "float16 and a scaler", "bfloat16 weights"])
def test_a_training_run_is_recorded_by_it(precision):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)).cuda()
    model = model.bfloat16() if precision == "bfloat16 weights" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=256.0, enabled="scaler" in precision)
    dtype = torch.float16 if "scaler" in precision else torch.bfloat16
    norms = []
    with recording() as session:
        for _ in range(6):
            optimizer.zero_grad()
            inputs = torch.randn(32, 64, device="cuda", dtype=next(model.parameters()).dtype)
            with torch.autocast("cuda", dtype=dtype, enabled="auto" in precision or "scaler" in precision):
                loss = model(inputs).float().square().mean()
            scaler.scale(loss).backward()
            factor = 256.0 if "scaler" in precision else 1.0
            norms.append(math.sqrt(sum((p.grad.double() / factor).square().sum().item() for p in model.parameters())))
            scaler.step(optimizer)
            scaler.update()
    assert [part.values["grad_norm"] for part in session.parts()] == pytest.approx(norms, rel=1e-5)
    assert any(facts.get("kernel") == "nvrtc" for facts in session.told)
    assert all("grad_absmax" in part.values for part in session.parts()[1:])
    assert session.histograms("gradient")
    assert all(part.values["update_ratio"] > 0.0 for part in session.parts()[1:])


def test_a_compiled_optimizer_is_recorded():
    """torch.compile of the step, hooks and all: they stay outside of its graphs."""
    if dry():
        pytest.skip("compiling takes a minute without a device")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-3, device="cuda"), capturable=True)
    step, norms = torch.compile(lambda: optimizer.step(), fullgraph=False), []  # noqa: PLW0108
    with recording() as session:
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(16, 64, device="cuda")).square().mean().backward()
            norms.append(math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters())))
            step()
    assert [part.values["grad_norm"] for part in session.parts()] == pytest.approx(norms, rel=1e-5)


def test_foreach_instead_when_it_is_asked_for():
    parameter = nn.Parameter(torch.ones(1000, device="cuda"))
    optimizer = torch.optim.SGD([parameter], lr=1e-3)
    with recording() as session:
        session.settings = session.settings._replace(kernel="foreach")
        for _ in range(3):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    assert [part.values["grad_norm"] for part in session.parts()] == pytest.approx([math.sqrt(1000)] * 3)
    assert {facts["kernel_reason"] for facts in session.told if "kernel" in facts} == {"hooks.kernel is foreach"}
