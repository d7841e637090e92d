"""What doctor says about kernels: found as the product finds them, for devices that need not be here."""

import json
import subprocess
import sys

import pytest
import torch
from gpuwatch_hooks.kernels import compiler, driver, outlook, triton_compiler
from gpuwatch_hooks.kernels.compiler import Compiler, CompilerError
from gpuwatch_hooks.kernels.triton_compiler import TritonError


@pytest.fixture
def machine(monkeypatch):
    """One with a driver, an NVRTC that knows 80 and 90, and a Triton; each can be taken away."""

    def build(*, driver_there=True, nvrtc=(80, 90), triton="3.7.1"):
        def refuse():
            raise driver.DriverError("there is no CUDA driver")

        def find():
            if not nvrtc:
                raise CompilerError("no NVRTC library was found")
            one = object.__new__(Compiler)
            one.architectures, one.version, one.path = list(nvrtc), (12, 9), "/lib/libnvrtc.so.12"
            return one

        def version():
            if triton is None:
                raise TritonError("Triton is not installed")
            return triton

        monkeypatch.setattr(driver, "Driver", (lambda: None) if driver_there else refuse)
        monkeypatch.setattr(compiler, "find", find)
        monkeypatch.setattr(triton_compiler, "version", version)

    return build


def test_nvrtc_first(machine):
    machine()
    found = outlook.choose("H100", 90, "auto")
    assert found == {"kernel": "nvrtc", "detail": "H100; NVRTC 12.9 for sm_90, /lib/libnvrtc.so.12", "missing": ""}


def test_triton_next_and_why(machine):
    machine(nvrtc=())
    wanted = {"kernel": "triton", "detail": "H100; Triton 3.7.1 for sm_90", "missing": "nvrtc: no NVRTC library was found"}
    assert outlook.choose("H100", 90, "auto") == wanted
    assert outlook.choose("H100", 90, "triton") == wanted | {"missing": ""}
    machine(nvrtc=(80, 90))
    assert outlook.choose("V100", 70, "auto")["missing"] == "nvrtc: NVRTC 12.9 no longer knows compute capability 70"


def test_foreach_last_with_every_reason(machine):
    machine(nvrtc=(), triton=None)
    missing = "nvrtc: no NVRTC library was found; triton: Triton is not installed"
    assert outlook.choose("H100", 90, "auto") == {"kernel": "foreach", "detail": "H100", "missing": missing}
    assert outlook.choose("H100", 90, "nvrtc")["missing"] == "nvrtc: no NVRTC library was found"
    machine(driver_there=False)
    assert outlook.choose("H100", 90, "nvrtc")["missing"] == "nvrtc: there is no CUDA driver"
    assert "ROCm" in outlook.choose("MI300", 94, "auto", hip=True)["missing"]
    assert outlook.choose("H100", 90, "foreach")["kernel"] == "foreach"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_here():
    ran = [sys.executable, "-m", "gpuwatch_hooks.kernels.outlook"]
    found = json.loads(subprocess.run(ran, capture_output=True, check=True, timeout=120).stdout)
    assert (found["kernel"], found["missing"]) == ("cpu", "")
    assert torch.__version__ in found["detail"]
