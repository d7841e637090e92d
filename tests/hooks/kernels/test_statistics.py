"""Every statistic of both kernels against the slow twin, over every kind of tensor that training produces."""

import functools
import math

import pytest
import torch
from gpuwatch_hooks import wire
from gpuwatch_hooks.kernels import cpu, foreach, small

from tests.hooks.kernels import twin

KERNELS = {"cpu": cpu, "foreach": foreach}
GENERATOR = torch.Generator().manual_seed(7)


def normal(*shape, scale=1.0, dtype=torch.float32):
    return (torch.randn(*shape, generator=GENERATOR, dtype=torch.float64) * scale).to(dtype)


def with_bad(tensor):
    flat = tensor.view(-1)
    flat[0], flat[3], flat[-1] = math.nan, math.inf, -math.inf
    return tensor


TENSORS = {
    "small": normal(16, 16),
    "one": torch.tensor([-2.5]),
    "scalar": torch.tensor(3.0),
    "medium": normal(60, 60),
    "pieces": normal(300, 700),
    "pieces, uneven": normal(65537),
    "many pieces": normal(400_000, scale=1e-3),
    "tiny": normal(5000, scale=1e-30),
    "squares are denormal": normal(5000, scale=2e-22),
    "tiny, small": normal(50, scale=1e-30),
    "denormal": torch.full((3000,), 1e-42),
    "huge": normal(5000, scale=1e30),
    "largest": torch.full((4000,), 3e38),
    "tiny beside huge": torch.cat([normal(2500, scale=1e-30), normal(2500, scale=1e30)]),
    "far from zero": normal(4000, scale=1e-3) + 5.0,
    "constant": torch.full((4000,), 0.1),
    "constant, small": torch.full((40,), 0.1),
    "zeros": torch.zeros(4000),
    "negative zeros": torch.full((4000,), -0.0),
    "half zeros": torch.relu(normal(3000)),
    "bad": with_bad(normal(5000)),
    "bad, small": with_bad(normal(100)),
    "bad, many pieces": with_bad(normal(400_000)),
    "all NaN": torch.full((4000,), math.nan),
    "all Inf, small": torch.full((40,), -math.inf),
    "bf16": normal(5000, dtype=torch.bfloat16),
    "bf16, pieces": normal(200_000, dtype=torch.bfloat16),
    "bf16, small": normal(500, dtype=torch.bfloat16),
    "fp16": normal(5000, dtype=torch.float16),
    "fp16 that overflows itself": torch.full((5000,), 60000.0, dtype=torch.float16),
    "fp16, small, denormal": torch.full((500,), 6e-8, dtype=torch.float16),
    "fp16, bad": with_bad(normal(5000, dtype=torch.float16)),
    "fp64": normal(5000, dtype=torch.float64),
    "fp64, bad": with_bad(normal(5000, dtype=torch.float64)),
    "not contiguous": normal(80, 90).t()[::2],
    "not contiguous, small": normal(8, 9).t()[::2],
    "expanded": torch.ones(1).expand(5000),
    "empty": torch.empty(0),
    "empty, 2-d": torch.empty(0, 5),
}
ONLY_CPU = {  # float64 beyond the squares that float64 has
    "fp64, tiny": normal(5000, scale=1e-200, dtype=torch.float64),
    "fp64, huge": normal(5000, scale=1e200, dtype=torch.float64),
    "fp64, denormal": torch.full((4000,), 5e-324, dtype=torch.float64),
}
CASES = [(kernel, name) for kernel in KERNELS for name in TENSORS] + [("cpu", name) for name in ONLY_CPU]


@functools.cache
def wanted_row(name, scale=1.0, threshold=None):
    return twin.row(twin.values(tensor_of(name)), scale, threshold)


def tensor_of(name):
    return TENSORS[name] if name in TENSORS else ONLY_CPU[name]


def rows_of(kernel, tensors, **options):
    found = KERNELS[kernel].table(tensors, **options)
    flat = found if isinstance(found, list) else found.reshape(-1).tolist()
    return [flat[at : at + 8] for at in range(0, len(flat), 8)]


def assert_row(got, wanted, relative=1e-5):
    for name, value in zip(wire.TENSOR_COLUMNS, got, strict=True):
        want = wanted[name]
        if math.isnan(want):
            assert math.isnan(value), (name, value)
            continue
        # A mean is a sum that cancels, a deviation a difference: their errors are those of the magnitudes behind them.
        slack = relative * wanted["mean_abs"] * (1e-2 if name in ("mean", "std") else 0.0)
        assert math.isclose(value, want, rel_tol=relative, abs_tol=slack), (name, value, want)


@pytest.mark.parametrize(("kernel", "name"), CASES)
def test_table(kernel, name):
    tensor = tensor_of(name)
    (row,) = rows_of(kernel, [tensor], threshold=torch.tensor(1e-4, dtype=torch.float64))
    assert_row(row, wanted_row(name, threshold=1e-4))


@pytest.mark.parametrize("kernel", KERNELS)
def test_table_of_everything_at_once_keeps_the_order(kernel):
    names = [name for name in TENSORS if "many pieces" not in name]
    rows = rows_of(kernel, [TENSORS[name] for name in names])
    for name, row in zip(names, rows, strict=True):
        assert_row(row, wanted_row(name))


@pytest.mark.parametrize(("kernel", "name"), CASES)
def test_norms(kernel, name):
    tensor = tensor_of(name)
    wanted = wanted_row(name)
    found = KERNELS[kernel].norms([tensor])
    if kernel == "cpu":
        (norm,), nonfinite = found
        assert nonfinite.get(0, 0) == wanted["nonfinite_count"]
        assert math.isclose(norm, wanted["norm"], rel_tol=1e-5, abs_tol=1e-320)
    elif wanted["nonfinite_count"]:  # a device is asked for more on the next table
        assert not math.isfinite(float(found[0]))
    else:
        assert math.isclose(float(found[0]), wanted["norm"], rel_tol=1e-5)


def test_norms_of_a_mixed_list():
    names = ["small", "many pieces", "bad, many pieces", "fp16", "zeros", "pieces, uneven", "tiny", "bad", "huge", "empty"]
    norms, nonfinite = cpu.norms([TENSORS[name] for name in names])
    wanted = [wanted_row(name) for name in names]
    assert nonfinite == {i: w["nonfinite_count"] for i, w in enumerate(wanted) if w["nonfinite_count"]}
    for got, want in zip(norms, wanted, strict=True):
        assert math.isclose(got, want["norm"], rel_tol=1e-5)


def test_norms_with_a_torch_whose_foreach_norm_has_no_dtype(monkeypatch):
    """Torch before 2.4."""
    original = torch._foreach_norm
    monkeypatch.setattr(torch, "_foreach_norm", lambda tensors, order=2: original(tensors, order))
    names = ["small", "bf16, pieces", "fp16 that overflows itself", "fp64"]
    for norm, name in zip(foreach.norms([TENSORS[name] for name in names]), names, strict=True):
        assert math.isclose(float(norm), wanted_row(name)["norm"], rel_tol=1e-5)


def test_torch_alone_would_get_these_norms_wrong():
    """The twin of the exact path: without it these would vanish, overflow or drift."""
    assert torch._foreach_norm([TENSORS["tiny"]])[0] == 0.0
    assert torch._foreach_norm([TENSORS["huge"]])[0] == math.inf
    assert torch._foreach_norm([TENSORS["fp16 that overflows itself"]])[0] == math.inf
    right = twin.row(twin.values(TENSORS["bf16, pieces"]))["norm"]
    assert abs(float(torch._foreach_norm([TENSORS["bf16, pieces"]])[0]) / right - 1.0) > 1e-5


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["small", "medium", "bf16", "fp16", "fp64", "bad", "tiny", "pieces", "bad, small"])
def test_scale_brings_true_units(kernel, name):
    """A fused optimizer's gradients still carry the loss scale: all columns and buckets are those of the unscaled ones."""
    scale = torch.tensor(1.0 / 1000.0, dtype=torch.float64)
    tensor = TENSORS[name]
    threshold = torch.tensor(2e-4, dtype=torch.float64)
    (row,) = rows_of(kernel, [tensor], scale=scale, threshold=threshold)
    # float32(x * scale) moves an entry by half an ulp: the share below a threshold may differ by entries that sit on it
    assert_row(row, twin.row(twin.values(tensor), scale=1e-3, threshold=2e-4))


@pytest.mark.parametrize(("kernel", "name"), [(k, n) for k, n in CASES if "many pieces" not in n])
def test_histograms(kernel, name):
    tensor = tensor_of(name)
    (counts,) = KERNELS[kernel].histograms([tensor]).tolist()
    assert counts == twin.histogram(twin.values(tensor))


@pytest.mark.parametrize("kernel", KERNELS)
def test_histograms_of_everything_at_once(kernel):
    names = [name for name in TENSORS if "many pieces" not in name]
    for name, counts in zip(names, KERNELS[kernel].histograms([TENSORS[n] for n in names]).tolist(), strict=True):
        assert counts == twin.histogram(twin.values(TENSORS[name])), name


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_bucket_edges(kernel, dtype):
    """Powers of two and their neighbours, from below the first bucket to above the last."""
    exponents = [e for e in range(-60, 25) if dtype is not torch.float16 or -24 <= e < 16]
    edges = torch.tensor([2.0**e for e in exponents], dtype=dtype)
    inside = [torch.nextafter(edges.float(), torch.tensor(d)).to(dtype) for d in (0.0, math.inf)]
    for tensor in (edges, -edges, *inside, torch.cat([edges, -edges, *inside] * 10)):
        (counts,) = KERNELS[kernel].histograms([tensor]).tolist()
        assert counts == twin.histogram(twin.values(tensor))


def test_histograms_scaled():
    tensor = TENSORS["medium"]
    for kernel in (cpu, foreach):
        (counts,) = kernel.histograms([tensor], torch.tensor(2.0**-10, dtype=torch.float64)).tolist()
        assert counts == twin.histogram(twin.values(tensor), 2.0**-10)


def test_a_deterministic_run_gets_no_device_histogram():
    torch.use_deterministic_algorithms(True)
    try:
        assert foreach.histograms([TENSORS["small"]]) is None
    finally:
        torch.use_deterministic_algorithms(False)


def test_small_batches_are_bounded(monkeypatch):
    monkeypatch.setattr(small, "_JOINED_ENTRIES", 300)
    tensors = [TENSORS[n] for n in ("small", "bad, small", "empty", "tiny, small", "fp16, small, denormal", "one", "fp64")]
    batches = list(small.batches(tensors))
    assert [index for batch in batches for index in batch] == [0, 1, 3, 4, 5]
    assert len(batches) > 2
    for got, tensor in zip(rows_of("cpu", tensors), tensors, strict=True):
        assert_row(got, twin.row(twin.values(tensor)))


@pytest.mark.parametrize("scale", [None, torch.tensor(1e-3, dtype=torch.float64)])
def test_small_tensors_of_few_sizes(scale):
    """As a model has them: read as matrices; a size of which one is not finite goes by segments."""
    tensors = [normal(64, scale=10.0**-i) for i in range(8)] + [torch.relu(normal(8, 8)) for _ in range(6)]
    tensors += [with_bad(normal(100)), *[normal(100, dtype=torch.bfloat16) + 7 for _ in range(5)]]
    tensors += [torch.full((64,), 0.1), torch.zeros(64), torch.full((64,), 1e-42), normal(64, scale=1e30)]
    rows = rows_of("cpu", tensors, scale=scale, threshold=torch.tensor(1e-4, dtype=torch.float64))
    for tensor, row in zip(tensors, rows, strict=True):
        assert_row(row, twin.row(twin.values(tensor), 1.0 if scale is None else 1e-3, 1e-4))


@pytest.mark.parametrize("size", [10, 5000])
def test_cpu_norms_refuse_what_they_cannot_read(size):
    """Nothing is asked of each tensor that torch would not say by itself: also then nothing is read wrongly."""
    plain = torch.ones(size)
    sparse = torch.sparse_coo_tensor([[0, 1, 1]], torch.ones(3), (size,), check_invariants=True)
    with pytest.raises(RuntimeError):
        cpu.norms([plain, torch.ones(size + 1, dtype=torch.int32)])
    for odd in (torch.ones(size, device="meta"), sparse, plain.to(torch.complex64)):
        for tensors in ([odd], [plain, odd], [odd, plain, torch.ones(9000)]):
            cpu.norms([torch.ones(tensor.shape) for tensor in tensors])  # the same sizes were ordinary before
            with pytest.raises(RuntimeError):
                cpu.norms(tensors)
    assert cpu.norms([plain, torch.ones(9000)])[0] == pytest.approx([math.sqrt(size), math.sqrt(9000)])


def test_norms_where_types_and_shapes_change_behind_the_same_sizes():
    for tensors in (
        [torch.ones(64), torch.ones(64)],
        [torch.ones(64), torch.ones(8, 8)],
        [torch.ones(8, 8), torch.ones(8, 8)],
        [torch.ones(64), torch.ones(64, dtype=torch.bfloat16)],
        [torch.ones(64), torch.full((64,), 1.0 + 2.0**-20, dtype=torch.float64)],
        [torch.ones(64, dtype=torch.bfloat16), torch.full((64,), 1.0 + 2.0**-20)],
        [torch.ones(64, dtype=torch.bfloat16), torch.ones(64, dtype=torch.bfloat16)],
        [torch.ones(64, dtype=torch.bfloat16), torch.full((64,), 1.0 + 2.0**-20)],
        [torch.ones(64, dtype=torch.float64), torch.ones(8, 8)],
    ):
        assert cpu.norms(tensors)[0] == pytest.approx([8.0, tensors[1].double().norm().item()], rel=1e-6)


def test_norms_of_equal_entries():
    """A float32 sum of 65,536 equal squares is off by 1.7e-5: rows of 4,096 are not."""
    tensor = torch.full((1 << 20,), 0.1234567)
    (norm,), _ = cpu.norms([tensor])
    assert norm == pytest.approx(1024 * tensor[0].item(), rel=3e-6)
    (row,) = rows_of("cpu", [torch.cat([tensor, -tensor])])
    assert row[0] == pytest.approx(1024 * math.sqrt(2) * tensor[0].item(), rel=3e-6)
    assert abs(torch._foreach_norm([tensor[:65536]])[0].item() / (256 * tensor[0].item()) - 1) > 1e-5  # the twin


def test_tensors_are_left_as_they_were():
    for name, tensor in TENSORS.items():
        before, version = tensor.clone(), tensor._version
        for kernel in (cpu, foreach):
            kernel.norms([tensor])
            kernel.table([tensor], threshold=torch.tensor(1e-4, dtype=torch.float64))
            kernel.histograms([tensor])
        assert tensor._version == version
        assert torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(before)), name
