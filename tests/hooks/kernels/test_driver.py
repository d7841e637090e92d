"""What the hooks say to the CUDA driver, heard by a library that has its functions: the order of calls and every argument."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from gpuwatch_hooks import snapshot
from gpuwatch_hooks.kernels import cuda_source
from gpuwatch_hooks.kernels import driver as driver_module
from gpuwatch_hooks.kernels.binary import Binary, Kernel
from gpuwatch_hooks.kernels.cuda_device import CudaDevice
from gpuwatch_hooks.kernels.driver import Driver, DriverError

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not here")
KERNELS = {
    cuda_source.CHUNKS: Kernel("gpuwatch_chunks", 512, 0, 0),
    cuda_source.CHUNKS_HISTOGRAM: Kernel("gpuwatch_chunks_histogram", 128, 256, 2),  # as Triton makes them
    cuda_source.ROWS: Kernel("gpuwatch_rows", 128, 0, 0),
}
SOURCE = Path(__file__).with_name("fake_libcuda.c")


@pytest.fixture
def library(tmp_path):
    """A fresh copy of the library: its path and, for looking inside, its handle."""
    path = tmp_path / "libcuda.so.1"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", str(SOURCE), "-o", str(path)]
    subprocess.run(command, check=True, timeout=60)
    return str(path), ctypes.CDLL(str(path))


def calls(library):
    buffer = (ctypes.c_char * 16384).in_dll(library[1], "calls")
    noted = buffer.value.decode().splitlines()
    buffer.value = b""
    return noted


def device(library, monkeypatch, current=0):
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: current, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 0xBEEF00 + index, raising=False)
    driver = Driver(library[0])
    context, functions = driver.functions(0, [Binary(b"code", KERNELS)])
    return CudaDevice(0, driver, context, functions, 132), functions


def test_loading_pushes_the_context_and_spoils_no_capture(library, monkeypatch):
    _, functions = device(library, monkeypatch)
    assert calls(library) == ["retain", "relaxed", "push", "load", "pop", "global"]
    assert set(functions) == {cuda_source.CHUNKS, cuda_source.CHUNKS_HISTOGRAM, cuda_source.ROWS}
    assert [function.registers for function in functions.values()] == [40, 41, 42]


def test_a_refused_module_leaves_everything_as_it_was(library):
    driver = Driver(library[0])
    with pytest.raises(DriverError, match="cuModuleLoadData: CUDA_ERROR"):
        driver.functions(0, [Binary(b"rubbish", KERNELS)])
    assert calls(library)[-2:] == ["pop", "global"]


def test_waiting_for_a_copy_spoils_no_capture(library, monkeypatch):
    """cudaEventSynchronize on one thread ends a capture on another that was begun in the "global" mode."""
    heard = []

    class Event:
        def synchronize(self):
            heard.extend(calls(library))

    monkeypatch.setattr(driver_module, "Driver", lambda: Driver(library[0]))
    assert snapshot.Snapshot(torch.ones(2), Event()).read().tolist() == [1.0, 1.0]
    assert heard == ["relaxed"]
    assert calls(library) == ["global"]


def test_a_launch_hands_every_argument_over_as_64_bits(library, monkeypatch):
    one, _ = device(library, monkeypatch)
    calls(library)
    arguments = (0x7F00_1234_5678_9ABC, 1, 2**64 - 1, 0, 5, 6, 7)
    ctypes.c_int.in_dll(library[1], "argument_count").value = len(arguments)
    one.launch(cuda_source.CHUNKS, 3807, arguments)
    heard = calls(library)
    # no context on this thread yet: the primary one is made current, as the CUDA runtime would have done
    assert heard == ["launch without a context", "set", "launch gpuwatch_chunks 3807 1 1 512 1 1 0 0xbeef00 (nil)"]
    assert tuple((ctypes.c_ulonglong * 16).in_dll(library[1], "given"))[:7] == arguments
    ctypes.c_int.in_dll(library[1], "argument_count").value = 5  # it follows as many addresses as it is told
    one.launch(cuda_source.ROWS, 148, (1, 2, 3, 4, 5))
    assert calls(library) == ["launch gpuwatch_rows 148 1 1 128 1 1 0 0xbeef00 (nil)"]


def test_what_triton_asks_for_besides_is_handed_over(library, monkeypatch):
    """Shared memory, and zeros for the scratch memory that its kernels do not use."""
    one, _ = device(library, monkeypatch)
    calls(library)
    ctypes.c_int.in_dll(library[1], "argument_count").value = 9
    one.launch(cuda_source.CHUNKS_HISTOGRAM, 12, (1, 2, 3, 4, 5, 6, 7))
    assert calls(library)[-1] == "launch gpuwatch_chunks_histogram 12 1 1 128 1 1 256 0xbeef00 (nil)"
    assert tuple((ctypes.c_ulonglong * 16).in_dll(library[1], "given"))[:9] == (1, 2, 3, 4, 5, 6, 7, 0, 0)


def test_each_module_is_loaded(library):
    """Triton makes one of each kernel."""
    _, functions = Driver(library[0]).functions(0, [Binary(b"code", {name: kernel}) for name, kernel in KERNELS.items()])
    assert calls(library) == ["retain", "relaxed", "push", "load", "load", "load", "pop", "global"]
    assert set(functions) == set(KERNELS)


def test_another_current_device_is_changed_for_the_launch(library, monkeypatch):
    entered = []

    class OnDevice:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            entered.append(self.index)

        def __exit__(self, *_):
            entered.append("left")

    monkeypatch.setattr(torch.cuda, "device", OnDevice)
    one, _ = device(library, monkeypatch, current=1)
    one.launch(cuda_source.ROWS, 1, (1, 2, 3, 4, 5))
    assert entered == [0, "left"]


def test_what_the_driver_says_is_told(library, monkeypatch):
    one, _ = device(library, monkeypatch)
    monkeypatch.setattr(one._driver, "call", lambda *_: None)  # no context can be made current
    with pytest.raises(DriverError, match="cuLaunchKernel: CUDA_ERROR_INVALID_CONTEXT"):
        one.launch(cuda_source.ROWS, 1, (1, 2, 3, 4, 5))


def test_no_driver_is_one_sentence(tmp_path):
    with pytest.raises(DriverError, match="there is no CUDA driver"):
        Driver(str(tmp_path / "libcuda.so.1"))
