"""The fused kernel compiled by NVRTC, or taken from the cache.

`load` takes up to some seconds and may make the driver wait for the device: it belongs on the control thread, never in the
middle of a step. What it returns queues work on the current stream and waits for nothing.
"""

import sys
import time

from . import compiler, cubin_cache, cuda_source, cuda_updates
from .binary import Binary, Kernel
from .cuda_device import CudaDevice
from .driver import Driver, DriverError
from .fused import Fused

SOURCE = cuda_source.SOURCE + cuda_updates.SOURCE
_THREADS = {
    cuda_source.CHUNKS: cuda_source.THREADS,
    cuda_source.CHUNKS_HISTOGRAM: cuda_source.THREADS,
    cuda_source.ROWS: cuda_source.ROW_THREADS,
    cuda_updates.KEEP: cuda_updates.THREADS,
    cuda_updates.COMPARE: cuda_updates.THREADS,
    cuda_updates.CHANGES: cuda_source.ROW_THREADS,
}
KERNELS = {name: Kernel(name, threads, 0, 0) for name, threads in _THREADS.items()}


def code_for(found, capability, driver_version):
    """(code, target, whether it was in the cache) for a device of this compute capability, by the compiler `found`."""
    target, _ = found.target(capability)
    name = cubin_cache.key(SOURCE, compiler.OPTIONS, target, found.version, driver_version)
    code = cubin_cache.read(name)
    if code is not None:
        return code, target, True
    code, _ = found.compile(SOURCE, target)
    cubin_cache.write(name, code)
    return code, target, False


def load(index):
    """The fused kernel on CUDA device `index`. Raises CompilerError or DriverError, whose text says why not."""
    torch = sys.modules["torch"]
    began = time.monotonic()
    properties = torch.cuda.get_device_properties(index)
    driver = Driver()
    code, target, cached = code_for(compiler.find(), 10 * properties.major + properties.minor, driver.version())
    context, functions = driver.functions(index, [Binary(code, KERNELS)])
    facts = {
        "kernel": "nvrtc",
        "kernel_target": target,
        "kernel_cached": cached,
        "kernel_load_seconds": round(time.monotonic() - began, 3),
    }
    device = CudaDevice(index, driver, context, functions, properties.multi_processor_count)
    return Fused(device, facts, (DriverError,))
