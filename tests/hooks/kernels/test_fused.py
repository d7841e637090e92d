"""The fused CUDA kernel without a device: its own source, compiled for the host, against the slow twin."""

import functools
import math
import shutil

import pytest
import torch
from gpuwatch_hooks import wire
from gpuwatch_hooks.kernels import chunks, cuda_source

from tests.hooks.kernels import emulated, twin
from tests.hooks.kernels.test_statistics import TENSORS, assert_row, normal, with_bad

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not here")

MORE = {
    "fp16, denormals": (torch.arange(2048, dtype=torch.float32) * 2.0**-24).to(torch.float16),
    "fp16, largest": torch.full((3000,), 65504.0, dtype=torch.float16),
    "bf16, tiny": normal(5000, scale=1e-35, dtype=torch.bfloat16),
    "bf16, huge": normal(5000, scale=1e36, dtype=torch.bfloat16),
    "denormal, one bit": torch.full((300,), 1.4e-45),
    "half tiny, half ordinary": torch.cat([normal(40_000, scale=1e-30), normal(40_000)]),
    "one huge among zeros": torch.cat([torch.zeros(70_000), torch.tensor([1e30])]),
    "tiny and far from zero": (normal(5000, scale=1e-3) + 5.0) * 1e-30,
    "bad among denormals": with_bad(torch.full((900,), 1e-42)),
    "channels_last": normal(4, 6, 5, 7).to(memory_format=torch.channels_last),
    "transposed": normal(30, 50).t(),
}
CASES = {
    name: tensor
    for name, tensor in {**TENSORS, **MORE}.items()
    if tensor.dtype is not torch.float64 and name not in ("expanded", "not contiguous", "not contiguous, small")
}


@functools.cache
def kernel(**options):
    return emulated.fused(**options)


def answers(tensors, *, with_kernel=None, **options):
    """(rows, histograms or None) as lists."""
    answer = (with_kernel or kernel()).measure(tensors, **options)
    rows, counts = chunks.decode(bytes(answer.numpy()), len(tensors))
    split = None if counts is None else [list(counts[at : at + 64]) for at in range(0, len(counts), 64)]
    return [list(rows[at : at + 8]) for at in range(0, len(rows), 8)], split


def double(value):
    return torch.tensor(value, dtype=torch.float64)


@functools.cache
def wanted_row(name, scale=1.0, threshold=None):
    return twin.row(twin.values(CASES[name]), scale, threshold)


@pytest.mark.parametrize("name", CASES)
def test_every_statistic_and_the_histogram(name):
    tensor = CASES[name]
    (row,), (counts,) = answers([tensor], threshold=double(1e-4), histograms=True)
    assert_row(row, wanted_row(name, threshold=1e-4))
    assert counts == twin.histogram(twin.values(tensor))
    (again,), nothing = answers([tensor])
    assert nothing is None
    assert math.isnan(again[7])
    assert again[:7] == row[:7]


def test_all_at_once_in_one_pass_of_mixed_types():
    names = list(CASES)
    one = emulated.fused()
    rows, counts = answers([CASES[name] for name in names], with_kernel=one, histograms=True)
    for name, row, found in zip(names, rows, counts, strict=True):
        assert_row(row, wanted_row(name))
        assert found == twin.histogram(twin.values(CASES[name])), name
    kernels = [entry[0] for entry in one._device.log]
    assert kernels == ["upload", "upload", "clear", cuda_source.CHUNKS_HISTOGRAM, cuda_source.ROWS]


@pytest.mark.parametrize("name", ["pieces", "bf16, pieces", "bad, many pieces", "tiny beside huge", "far from zero"])
@pytest.mark.parametrize("threads", [64, 512])
def test_the_order_of_threads_and_blocks_does_not_matter(name, threads):
    """Bit for bit: there is no floating-point atomic, and no barrier is missing."""
    tensors = [CASES[name], CASES["small"], CASES["fp16"]]
    forwards = answers(tensors, with_kernel=kernel(threads=threads), histograms=True)
    backwards = answers(tensors, with_kernel=kernel(threads=threads, backwards=True), histograms=True)
    assert repr(forwards) == repr(backwards)
    assert_row(forwards[0][0], twin.row(twin.values(tensors[0])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", range(9))
def test_misaligned(dtype, offset):
    """Views that do not begin at 16 bytes, of every length around a vector's."""
    memory = normal(400, dtype=dtype)
    tensors = [memory[offset : offset + length] for length in (*range(1, 20), 100, 331)]
    rows, counts = answers(tensors, histograms=True)
    for tensor, row, found in zip(tensors, rows, counts, strict=True):
        assert_row(row, twin.row(twin.values(tensor)))
        assert found == twin.histogram(twin.values(tensor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_entry_counts_once(dtype):
    """Ones at one place after the other: nothing is read twice or left out, at chunk edges neither."""
    size = chunks.SMALLEST_CHUNK
    places = [0, 1, 7, 8, size - 1, size, size + 1, 2 * size - 1, 2 * size, 2 * size + 2]
    tensors = [torch.zeros(2 * size + 3, dtype=dtype) for _ in places]
    for tensor, place in zip(tensors, places, strict=True):
        tensor[place] = 3.0
    rows, counts = answers(tensors, histograms=True)
    for row, found in zip(rows, counts, strict=True):
        assert row[:2] == [3.0, 3.0]
        assert row[5] == (2 * size + 2) / (2 * size + 3)
        assert found[49] == 1
        assert found[0] == 2 * size + 2


@pytest.mark.parametrize("name", ["small", "medium", "bf16", "fp16", "bad", "tiny", "pieces", "bad, small", "huge"])
def test_scale_brings_true_units(name):
    (row,), (counts,) = answers([CASES[name]], scale=double(1e-3), threshold=double(2e-4), histograms=True)
    assert_row(row, wanted_row(name, scale=1e-3, threshold=2e-4))
    assert sum(counts) == sum(math.isfinite(x) for x in twin.values(CASES[name]))


def test_a_power_of_two_as_scale_moves_the_buckets_exactly():
    tensor = CASES["medium"]
    _, (counts,) = answers([tensor], scale=double(2.0**-10), histograms=True)
    assert counts == twin.histogram(twin.values(tensor), 2.0**-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bucket_edges(dtype):
    exponents = [e for e in range(-60, 25) if dtype is not torch.float16 or -24 <= e < 16]
    edges = torch.tensor([2.0**e for e in exponents], dtype=dtype)
    inside = [torch.nextafter(edges.float(), torch.tensor(d)).to(dtype) for d in (0.0, math.inf)]
    for tensor in (edges, -edges, *inside):
        _, (counts,) = answers([tensor], histograms=True)
        assert counts == twin.histogram(twin.values(tensor))


def test_every_half_there_is():
    """All 65,536 bit patterns of fp16 and of bf16 go through the conversion."""
    patterns = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        tensor = patterns.view(dtype)
        (row,), (counts,) = answers([tensor], histograms=True)
        assert_row(row, twin.row(twin.values(tensor)))
        assert counts == twin.histogram(twin.values(tensor))


def test_plain_float32_sums_would_get_these_wrong():
    """The twin of the second read: what the first pass alone has of tiny and huge chunks."""
    for name in ("tiny", "huge"):
        squares = CASES[name].square().sum()
        assert squares in (0.0, math.inf)
        (row,), _ = answers([CASES[name]])
        assert row[0] == pytest.approx(wanted_row(name)["norm"], rel=1e-5)


def test_what_does_not_fit_is_refused():
    one = kernel()
    for name in ("fp64", "expanded", "not contiguous"):
        assert one.measure([TENSORS["small"], TENSORS[name]]) is None
        assert not one.fits(TENSORS[name])
    assert one.fits(CASES["channels_last"])
    assert one.fits(CASES["empty"])
    assert not one.fits(torch.ones(5, dtype=torch.int32))


def test_addresses_travel_only_when_they_have_changed():
    one = emulated.fused()
    tensors = [normal(100), normal(7)]
    for _ in range(5):
        answers(tensors, with_kernel=one)
    assert one.uploads == 1
    tensors[1] = tensors[1].clone()
    rows, _ = answers(tensors, with_kernel=one)
    assert one.uploads == 2
    assert_row(rows[1], twin.row(twin.values(tensors[1])))
    tensors[0].mul_(2.0)  # other numbers at the same place
    rows, _ = answers(tensors, with_kernel=one)
    assert one.uploads == 2
    assert_row(rows[0], twin.row(twin.values(tensors[0])))
    uploads = [entry for entry in one._device.log if entry[0] == "upload"]
    assert len(uploads) == 3  # the table once, the addresses twice


def test_a_layout_that_changes_behind_the_same_addresses_is_seen():
    one = emulated.fused()
    memory = normal(64)
    for tensor in (memory, memory[:32], memory.view(torch.bfloat16)):
        (row,), _ = answers([tensor], with_kernel=one)
        assert_row(row, twin.row(twin.values(tensor)))


def test_each_stream_has_tables_of_its_own():
    one = emulated.fused()
    tensors = [normal(10)]
    for stream in (0, 7, 0, 7):
        one._device.current = stream
        answers(tensors, with_kernel=one)
    assert one.uploads == 2


def test_layouts_are_bounded():
    one = emulated.fused()
    for size in range(1, 60):
        answers([torch.ones(size)], with_kernel=one)
    assert len(one._plans) <= 16


def test_tensors_are_left_as_they_were():
    for name in ("bad", "bf16, pieces", "tiny", "fp16, bad"):
        before = CASES[name].clone()
        answers([CASES[name]], scale=double(0.5), histograms=True)
        assert torch.equal(before.view(torch.uint8), CASES[name].view(torch.uint8))


def test_columns_are_those_of_the_wire():
    assert wire.TENSOR_COLUMNS == (
        "norm", "absmax", "mean_abs", "mean", "std", "zero_ratio", "nonfinite_count", "underflow_ratio"
    )  # fmt: skip  # gpuwatch_rows writes them in this order
    assert (wire.HISTOGRAM_BUCKETS, wire.HISTOGRAM_FIRST_EXPONENT) == (64, -48)
