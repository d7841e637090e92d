"""The fused kernel compiled by Triton, or taken from the cache: what is used where there is no NVRTC for the device.

`load` takes up to a minute when nothing is in the cache, nearly all of it in another process; like nvrtc.load it belongs on the
control thread.
"""

import sys
import time

from . import cubin_cache, triton_compiler, triton_source
from .cuda_device import CudaDevice
from .driver import Driver, DriverError
from .fused import Fused


def binaries_for(capability, version):
    """([Binary], whether they were in the cache) for a device of this compute capability, by this version of Triton."""
    name = cubin_cache.key(triton_source.SOURCE, triton_source.KERNELS, capability, version)
    raw = cubin_cache.read(name)
    if raw is not None:
        return triton_compiler.unpacked(raw), True
    raw = triton_compiler.compiled(capability)
    found = triton_compiler.unpacked(raw)
    cubin_cache.write(name, raw)
    return found, False


def load(index):
    """The fused kernel on CUDA device `index`. Raises TritonError or DriverError, whose text says why not."""
    torch = sys.modules["torch"]
    began = time.monotonic()
    properties = torch.cuda.get_device_properties(index)
    driver, version = Driver(), triton_compiler.version()
    capability = 10 * properties.major + properties.minor
    binaries, cached = binaries_for(capability, version)
    context, functions = driver.functions(index, binaries)
    facts = {
        "kernel": "triton",
        "kernel_target": "sm_%d" % capability,
        "kernel_cached": cached,
        "kernel_load_seconds": round(time.monotonic() - began, 3),
    }
    device = CudaDevice(index, driver, context, functions, properties.multi_processor_count)
    return Fused(device, facts, (DriverError,))
