"""A CUDA device that is none, for `make gpu GPU_ARGS=--dry-run`: what asks for a device gets the CPU, what asks for the kernel
its emulation, so that a wrong name or argument in the tests and benches of a GPU is met here and not in the minutes that a real
one is lent. Numbers made on it mean nothing, and what only a real device can show is left out by name (LEFT_OUT).

`install()` acts on this process alone; as a plugin of pytest (-p tests.gpu.pretended) it does so at once.
"""

import contextlib
import os
import time
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode

#: Set for the tests and benches of a dry run, which are smaller then: an emulated kernel reads 1 M entries a second.
VARIABLE = "GPUWATCH_GPU_DRY_RUN"
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
#: Tests, by the beginning of their names, of what nothing but a device does: capture, streams, the allocator, its profiler.
LEFT_OUT = (
    "tests/gpu/test_amp.py",
    "tests/gpu/test_on_demand.py",
    "tests/gpu/test_run.py",
    "tests/gpu/test_logging.py",
    "tests/gpu/test_kernels.py::test_streams",
    "tests/gpu/test_kernels.py::test_loading_while",
    "tests/gpu/test_kernels.py::test_a_training_run_is_recorded_by_it[float16 and a scaler",
    "tests/hooks/traps/test_cuda.py::test_true_units",
    "tests/hooks/traps/test_cuda.py::test_another_stream",
    "tests/hooks/traps/test_cuda.py::test_a_graph",
)


def dry():
    """Whether this is a dry run."""
    return bool(os.environ.get(VARIABLE))


def smaller(usual, tiny):
    """`tiny` in a dry run."""
    return tiny if dry() else usual


class _OnTheCpu(TorchFunctionMode):
    def __torch_function__(self, function, _types, args=(), kwargs=None):
        kwargs = {name: _device(value) for name, value in (kwargs or {}).items() if name not in {"pin_memory", "non_blocking"}}
        if getattr(function, "__name__", "") in {"cuda", "pin_memory"}:
            return args[0]
        return function(*map(_device, args), **kwargs)


def _device(value):
    if isinstance(value, str) and value.startswith("cuda"):
        return "cpu"
    return CPU if isinstance(value, torch.device) else value


class _Event:
    """What a CUDA event is asked for; its time is the host's."""

    def __init__(self, **_):
        self._at = 0.0

    def record(self, *_):
        self._at = time.perf_counter()

    def query(self):
        return True

    def elapsed_time(self, end):
        return 1000.0 * (end._at - self._at) + 1e-6


def install():
    """Pretend from now on."""
    from gpuwatch_hooks.kernels import nvrtc, selection, triton_kernel

    from tests.hooks.kernels import emulated

    def load(_index):
        kernel = emulated.fused()
        kernel.facts = {"kernel": "nvrtc", "kernel_target": "emulated"}
        return kernel

    _OnTheCpu().__enter__()
    properties = SimpleNamespace(name="no device (dry run)", total_memory=1 << 34, multi_processor_count=2, major=9, minor=0)
    for name, pretended in {
        "is_available": lambda: True,
        "synchronize": lambda *_: None,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: properties.name,
        "get_device_properties": lambda *_: properties,
        "mem_get_info": lambda *_: (1 << 34, 1 << 34),
        "empty_cache": lambda: None,
        "set_sync_debug_mode": lambda _mode: None,
        "device": lambda _index: contextlib.nullcontext(),
        "Event": _Event,
    }.items():
        setattr(torch.cuda, name, pretended)
    nvrtc.load = triton_kernel.load = load
    selection.Selection.concerns = lambda _self, _tensor: True
    real = selection.Selection.fused
    selection.Selection.fused = lambda self, _device: real(self, CUDA)


def pytest_collection_modifyitems(config, items):
    """Leave out what nothing but a device does."""
    out = [item for item in items if item.nodeid.startswith(LEFT_OUT)]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


if dry():
    install()
