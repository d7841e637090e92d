"""A device without a device: the product's CUDA source, compiled by the host's g++ behind a small shim, on CPU tensors.

Everything but the driver is the real thing: the tables, the addresses, the launches, the source itself. `backwards` runs
threads and blocks in the opposite order.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from gpuwatch_hooks.kernels import cuda_source, cuda_updates, nvrtc
from gpuwatch_hooks.kernels.fused import Fused

_SHIM = Path(__file__).with_name("cuda_on_host.h")
#: Arguments of each kernel.
COUNTS = {
    cuda_source.CHUNKS: 7,
    cuda_source.CHUNKS_HISTOGRAM: 7,
    cuda_source.ROWS: 5,
    cuda_updates.KEEP: 4,
    cuda_updates.COMPARE: 5,
    cuda_updates.CHANGES: 3,
}


def _entry(name: str, count: int) -> str:
    given = ", ".join(f"A<{i}>(&{name}, arguments)" for i in range(count))
    return (
        f"static void call_{name}(void** arguments) {{ {name}({given}); }}\n"
        f'extern "C" void launch_{name}(unsigned grid, unsigned block, void** arguments, int backwards)'
        f" {{ emulate(call_{name}, grid, block, arguments, backwards); }}\n"
    )


_PICK = """
#include <tuple>
template <unsigned I, typename... P> static auto A(void (*)(P...), void** arguments) {
  return (typename std::tuple_element<I, std::tuple<P...>>::type)arguments[I];
}
"""


@functools.cache
def library(threads: int) -> ctypes.CDLL:
    """The source as a shared library of functions launch_KERNEL(grid, block, arguments, backwards)."""
    entries = "".join(_entry(name, count) for name, count in COUNTS.items())
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
        source.write_text(f'#include "{_SHIM}"\n{nvrtc.SOURCE}\n{_PICK}\n{entries}')
        command = ["g++", "-std=c++17", "-O2", "-ffp-contract=off", f"-DTHREADS={threads}", "-Wall", "-Werror"]
        command += ["-Wno-unknown-pragmas", "-shared", "-fPIC", str(source), "-o", str(built)]
        subprocess.run(command, check=True, timeout=120)
        return ctypes.CDLL(str(built), mode=os.RTLD_LOCAL)


class EmulatedDevice:
    """What fused.py asks of a device, on CPU memory. `log` has every call, in order."""

    def __init__(self, *, threads: int = 64, backwards: bool = False, processors: int = 2) -> None:
        self.processors = processors
        self.threads = threads
        self.backwards = backwards
        self.current = 0
        self.log: list[tuple] = []

    def stream(self) -> int:
        return self.current

    def empty(self, size: int) -> torch.Tensor:
        # aligned as the caching allocator's memory is, and never zero by chance
        memory = torch.full((size + 512,), 0xA5, dtype=torch.uint8)
        start = -memory.data_ptr() % 512
        return memory[start : start + size]

    def upload(self, target: torch.Tensor, payload: bytes) -> None:
        self.log.append(("upload", len(payload)))
        assert len(payload) <= target.numel()
        ctypes.memmove(target.data_ptr(), payload, len(payload))

    def clear(self, target: torch.Tensor) -> None:
        self.log.append(("clear", target.numel()))
        target.zero_()

    def launch(self, kernel: str, blocks: int, arguments: tuple[int, ...]) -> None:
        self.log.append((kernel, blocks))
        assert len(arguments) == COUNTS[kernel]
        assert blocks > 0
        threads = nvrtc.KERNELS[kernel].threads
        threads = self.threads if threads == cuda_source.THREADS else threads
        given = (ctypes.c_void_p * len(arguments))(*arguments)
        getattr(library(self.threads), f"launch_{kernel}")(blocks, threads, given, int(self.backwards))


def fused(**options) -> Fused:
    """The fused kernel on an emulated device."""
    return Fused(EmulatedDevice(**options), {"kernel": "emulated"})
