"""NVRTC, where a library can be had (pip install nvidia-cuda-nvrtc): it needs no device to compile for one."""

import re

import pytest
from gpuwatch_hooks.kernels import compiler, cubin_cache, cuda_source, nvrtc
from gpuwatch_hooks.kernels.compiler import Compiler, CompilerError


@pytest.fixture(scope="module")
def found():
    try:
        return compiler.find()
    except CompilerError as error:
        pytest.skip(f"NVRTC is not here: {error}")


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_compiles_to_machine_code_that_does_not_spill(found, capability):
    target, finished = found.target(capability)
    assert (target, finished) == (f"sm_{capability}", True)
    code, log = found.compile(nvrtc.SOURCE, target, (*compiler.OPTIONS, "--ptxas-options=-v"))
    assert code[:4] == b"\x7fELF"
    for name in nvrtc.KERNELS:
        assert name.encode() in code
    assert set(re.findall(r"(\d+) bytes spill", log)) == {"0"}
    used = dict(
        zip(re.findall(r"entry function '(\w+)'", log), map(int, re.findall(r"Used (\d+) registers", log)), strict=True)
    )
    # 65,536 registers a processor for 3 and 2 blocks of 512 threads
    assert used[cuda_source.CHUNKS] <= 40
    assert used[cuda_source.CHUNKS_HISTOGRAM] <= 64


def test_a_newer_device_gets_ptx(found):
    target, finished = found.target(999)
    assert (target, finished) == (f"compute_{found.architectures[-1]}", False)
    code, _ = found.compile('extern "C" __global__ void k() {}', target)
    assert b".entry k" in code


def test_a_refusal_says_why(found):
    with pytest.raises(CompilerError, match=r"refused the kernel.*error"):
        found.compile("this is not CUDA", "sm_80")


def test_it_is_compiled_once_and_then_taken_from_the_cache(found, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(nvrtc, "SOURCE", 'extern "C" __global__ void k() {}')
    first = nvrtc.code_for(found, 80, 13000)
    monkeypatch.setattr(found, "compile", None)  # another call would fail
    assert nvrtc.code_for(found, 80, 13000) == (first[0], "sm_80", True)
    assert first[2] is False
    with pytest.raises(TypeError):
        nvrtc.code_for(found, 80, 13010)  # another driver: compiled again
    assert len(list((tmp_path / "gpuwatch" / "kernels").iterdir())) == 1


def known(*architectures):
    """A compiler that knows these; nothing is called."""
    one = object.__new__(Compiler)
    one.architectures, one.version = sorted(architectures), (12, 9)
    return one


def test_targets():
    one = known(75, 80, 90, 100)
    assert one.target(90) == ("sm_90", True)
    assert one.target(86) == ("compute_80", False)
    assert one.target(120) == ("compute_100", False)
    with pytest.raises(CompilerError, match=r"NVRTC 12\.9 no longer knows compute capability 70"):
        one.target(70)


def test_what_is_no_library_is_refused(tmp_path):
    path = tmp_path / "libnvrtc.so.12"
    path.write_bytes(b"no library")
    with pytest.raises(CompilerError, match="cannot be used"):
        Compiler(str(path))
    with pytest.raises(CompilerError, match="cannot be used"):
        Compiler("libm.so.6")  # a library, but another one


def test_candidates_are_found_beside_the_toolkit_newest_first(tmp_path, monkeypatch):
    library = tmp_path / "lib64"
    library.mkdir()
    for name in ("libnvrtc.so.12.8", "libnvrtc.so.12.10", "libnvrtc-builtins.so.12.8", "libnvrtc.alt.so.12"):
        (library / name).touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    ours = [path for path in compiler.candidates() if path.startswith(str(tmp_path))]
    assert ours == [str(library / "libnvrtc.so.12.10"), str(library / "libnvrtc.so.12.8")]


def test_none_at_all_is_one_sentence(monkeypatch):
    monkeypatch.setattr(compiler, "candidates", list)
    with pytest.raises(CompilerError, match="no NVRTC library was found"):
        compiler.find()


def test_the_name_in_the_cache_is_of_all_that_matters():
    source, options = cuda_source.SOURCE, compiler.OPTIONS
    names = {
        cubin_cache.key(source, options, "sm_90", (12, 9), 13000),
        cubin_cache.key(source + " ", options, "sm_90", (12, 9), 13000),
    }
    assert len(names) == 2
