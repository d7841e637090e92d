"""The fused kernel in Triton: interpreted against the slow twin, compiled for devices that are not here."""

import math
import sys

import pytest
import torch
from gpuwatch_hooks.kernels import chunks, cubin_cache, triton_compiler, triton_kernel, triton_source
from gpuwatch_hooks.kernels.triton_compiler import TritonError

from tests.hooks.kernels import interpreted, twin
from tests.hooks.kernels.test_fused import CASES, answers, double, wanted_row
from tests.hooks.kernels.test_statistics import assert_row, normal

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning")


@pytest.fixture(scope="module")
def kernel():
    return interpreted.fused()


@interpreted.needed
@pytest.mark.parametrize("name", CASES)
def test_every_statistic_and_the_histogram(kernel, name):
    tensor = CASES[name]
    (row,), (counts,) = answers([tensor], with_kernel=kernel, threshold=double(1e-4), histograms=True)
    assert_row(row, wanted_row(name, threshold=1e-4))
    assert counts == twin.histogram(twin.values(tensor))
    (again,), nothing = answers([tensor], with_kernel=kernel)
    assert nothing is None
    assert math.isnan(again[7])
    assert again[:7] == row[:7]


@interpreted.needed
def test_all_at_once_in_one_pass_of_mixed_types(kernel):
    rows, counts = answers(list(CASES.values()), with_kernel=kernel, histograms=True)
    for name, row, found in zip(CASES, rows, counts, strict=True):
        assert_row(row, wanted_row(name))
        assert found == twin.histogram(twin.values(CASES[name])), name


@interpreted.needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0, 1, 3, 8])
def test_misaligned(kernel, dtype, offset):
    memory = normal(5000, dtype=dtype)
    tensors = [memory[offset : offset + length] for length in (1, 7, 1023, 1024, 1025, 4001)]
    rows, counts = answers(tensors, with_kernel=kernel, histograms=True)
    for tensor, row, found in zip(tensors, rows, counts, strict=True):
        assert_row(row, twin.row(twin.values(tensor)))
        assert found == twin.histogram(twin.values(tensor))


@interpreted.needed
@pytest.mark.parametrize("name", ["small", "bf16", "fp16", "bad", "tiny", "huge"])
def test_scale_brings_true_units(kernel, name):
    (row,), _ = answers([CASES[name]], with_kernel=kernel, scale=double(1e-3), threshold=double(2e-4))
    assert_row(row, wanted_row(name, scale=1e-3, threshold=2e-4))


@interpreted.needed
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_half_there_is(kernel, dtype):
    patterns = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype)
    (row,), (counts,) = answers([patterns], with_kernel=kernel, histograms=True)
    assert_row(row, twin.row(twin.values(patterns)))
    assert counts == twin.histogram(twin.values(patterns))


@interpreted.needed
def test_every_entry_counts_once(kernel):
    size = chunks.SMALLEST_CHUNK
    places = [0, 1023, 1024, size - 1, size, 2 * size + 2]
    tensors = [torch.zeros(2 * size + 3) for _ in places]
    for tensor, place in zip(tensors, places, strict=True):
        tensor[place] = 3.0
    rows, counts = answers(tensors, with_kernel=kernel, histograms=True)
    for row, found in zip(rows, counts, strict=True):
        assert row[:2] == [3.0, 3.0]
        assert (found[49], found[0]) == (1, 2 * size + 2)


@pytest.mark.skipif(interpreted.absent(), reason="no Triton: it comes with torch for CUDA")
@pytest.mark.parametrize("capability", [80, 90])
def test_it_compiles_for_a_device_that_is_not_here(capability, tmp_path, monkeypatch):
    """And once: the second time it comes from the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    binaries, cached = triton_kernel.binaries_for(capability, triton_compiler.version())
    assert not cached
    assert [next(iter(binary.kernels)) for binary in binaries] == list(triton_source.KERNELS)
    for binary in binaries:
        (kernel,) = binary.kernels.values()
        assert binary.code[:4] == b"\x7fELF"
        assert kernel.symbol.encode() in binary.code
        assert (kernel.threads, kernel.spare_arguments) == (128, 2)
    monkeypatch.setattr(triton_compiler, "compiled", None)  # another call would fail
    assert triton_kernel.binaries_for(capability, triton_compiler.version()) == (binaries, True)
    assert len(list((tmp_path / "gpuwatch" / "kernels").iterdir())) == 1
    with pytest.raises(TypeError):
        triton_kernel.binaries_for(capability, "another version")


def test_what_is_packed_comes_out(tmp_path, monkeypatch):
    """Without Triton: what the other process writes, and what is refused of it."""
    one = '{"k": {"symbol": "f", "threads": 64, "shared_bytes": %d, "scratch_bytes": %d, "code": "AQI="}}'
    ((code, kernels),) = triton_compiler.unpacked(one % (32, 0))
    assert code == b"\x01\x02"
    assert kernels["k"] == ("f", 64, 32, 2)
    for asked in ((64 << 10, 0), (32, 128)):
        with pytest.raises(TritonError, match="wants more memory"):
            triton_compiler.unpacked(one % asked)


def test_a_compiler_that_fails_is_one_sentence(monkeypatch):
    monkeypatch.setattr(triton_compiler, "_CHILD", "import sys; sys.exit('out of luck')")
    with pytest.raises(TritonError, match="Triton failed with exit status 1: out of luck"):
        triton_compiler.compiled(90)
    monkeypatch.setattr(triton_compiler, "_CHILD", "import os; os.kill(os.getpid(), 11)")
    with pytest.raises(TritonError, match="exit status -11: it said nothing"):
        triton_compiler.compiled(90)
    monkeypatch.setattr(triton_compiler, "COMPILE_SECONDS", 0.2)
    monkeypatch.setattr(triton_compiler, "_CHILD", "import time; time.sleep(60)")
    with pytest.raises(TritonError, match=r"could not be run: .*timed out"):
        triton_compiler.compiled(90)
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(TritonError, match="own program is not known"):
        triton_compiler.compiled(90)


def test_the_compiler_sees_nothing_of_the_jobs_environment(monkeypatch):
    """Neither our own injection nor the user's switches for Triton: both would change what it does."""
    monkeypatch.setenv("GPUWATCH", "1")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    child = "import json, os, sys; print(json.dumps([sorted(os.environ), json.load(sys.stdin)['path'], sys.flags.isolated]))"
    monkeypatch.setattr(triton_compiler, "_CHILD", child)
    names, path, isolated = __import__("json").loads(triton_compiler.compiled(90))
    assert [name for name in names if name.startswith(("GPUWATCH", "TRITON", "PYTHON"))] == []
    assert isolated == 1
    assert all(entry.startswith("/") for entry in path)


@pytest.mark.parametrize(("found", "sentence"), [("3.2.0", "Triton 3.2.0 is older than 3.3"), (None, "not installed")])
def test_which_triton(found, sentence, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: found and object())
    monkeypatch.setattr("importlib.metadata.version", lambda _name: found)
    with pytest.raises(TritonError, match=sentence):
        triton_compiler.version()
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "3.10.1+git5")
    assert triton_compiler.version() == "3.10.1+git5"


def test_the_cache_has_another_name_for_each_device_and_version():
    names = {
        cubin_cache.key(triton_source.SOURCE, triton_source.KERNELS, *rest) for rest in ((80, "3.7"), (90, "3.7"), (90, "3.8"))
    }
    assert len(names) == 3
