"""The fused kernel on a CUDA device: compiled by NVRTC or taken from the cache, loaded and launched by the driver's own API.

`load` takes up to some seconds and may make the driver wait for the device: it belongs on the control thread, never in the
middle of a step. What it returns queues work on the current stream and waits for nothing.
"""

import ctypes
import sys
import time

from . import compiler, cubin_cache, cuda_source
from .fused import Fused

#: cuThreadExchangeStreamCaptureMode: a module loaded while another thread captures a graph would otherwise spoil its capture.
_RELAXED = 2
_REGISTERS = 4  # CU_FUNC_ATTRIBUTE_NUM_REGS
_NO_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT


class DriverError(Exception):
    """The CUDA driver refused something; the text has its own name for the error."""


class Driver:
    """libcuda, which is loaded already where torch uses a device."""

    def __init__(self, path="libcuda.so.1"):
        try:
            self._library = ctypes.CDLL(path)
        except OSError as error:
            raise DriverError("there is no CUDA driver: %s" % error) from None
        self.launch_kernel = self._library.cuLaunchKernel
        self.launch_kernel.argtypes = [ctypes.c_void_p] + [ctypes.c_uint] * 7 + [ctypes.c_void_p] * 3
        self.launch_kernel.restype = ctypes.c_int

    def call(self, name, *arguments):
        """One function of the driver API. Raises DriverError."""
        self.check(name, getattr(self._library, name)(*arguments))

    def check(self, name, status):
        """Raise DriverError unless `status` is CUDA_SUCCESS."""
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(status, ctypes.byref(text))
            raise DriverError("%s: %s" % (name, (text.value or str(status).encode()).decode()))

    def version(self):
        """Of the CUDA that the driver speaks, such as 13000."""
        found = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(found))
        return found.value

    def functions(self, index, code):
        """(context, {name: (handle, registers)}) of the kernels in `code`, loaded into the primary context of a device."""
        device, context, module = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        mode = ctypes.c_int(_RELAXED)
        self.call("cuDeviceGet", ctypes.byref(device), index)
        # kept for the life of the process, as torch does itself
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
        self.call("cuCtxPushCurrent_v2", context)
        try:
            self.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(code))
            return context, {name: self._function(module, name) for name in _KERNELS}
        finally:
            self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
            self.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))

    def _function(self, module, name):
        function, registers = ctypes.c_void_p(), ctypes.c_int()
        self.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        # asking also loads it: lazily loaded functions arrive at their first launch, which is in the middle of a step
        self.call("cuFuncGetAttribute", ctypes.byref(registers), _REGISTERS, function)
        return function.value, registers.value


_KERNELS = (cuda_source.CHUNKS, cuda_source.CHUNKS_HISTOGRAM, cuda_source.ROWS)


class CudaDevice:
    """What fused.py asks of a device; see there. Memory and streams are torch's."""

    def __init__(self, index, driver, context, functions, processors):
        import torch

        self.processors = processors
        self._driver, self._context = driver, context
        self._current_device, self._on_device = torch._C._cuda_getDevice, torch.cuda.device
        self._functions = {name: handle for name, (handle, _) in functions.items()}
        self._device = torch.device("cuda", index)
        self._index = index
        self._stream = torch._C._cuda_getCurrentRawStream
        self._empty, self._bytes = torch.empty, torch.uint8

    def stream(self):
        return self._stream(self._index)

    def empty(self, size):
        return self._empty(size, dtype=self._bytes, device=self._device)

    def upload(self, target, payload):
        # The pinned buffer is the caching host allocator's: it is not given out again before the copy has ended.
        pinned = self._empty(len(payload), dtype=self._bytes, device="cpu", pin_memory=True)
        ctypes.memmove(pinned.data_ptr(), payload, len(payload))
        target[: len(payload)].copy_(pinned, non_blocking=True)

    def clear(self, target):
        target.zero_()

    def launch(self, kernel, blocks, threads, arguments):
        if self._current_device() != self._index:  # the default stream is that of the current device
            with self._on_device(self._index):
                self._launch(kernel, blocks, threads, arguments)
        else:
            self._launch(kernel, blocks, threads, arguments)

    def _launch(self, kernel, blocks, threads, arguments):
        count = len(arguments)
        cells = (ctypes.c_uint64 * count)(*arguments)
        start = ctypes.addressof(cells)
        places = (ctypes.c_uint64 * count)(*range(start, start + 8 * count, 8))
        function, stream = self._functions[kernel], self.stream()
        given = (function, blocks, 1, 1, threads, 1, 1, 0, stream, ctypes.addressof(places), None)
        status = self._driver.launch_kernel(*given)
        if status == _NO_CONTEXT:  # a thread on which torch has not called the CUDA runtime yet
            self._driver.call("cuCtxSetCurrent", self._context)
            status = self._driver.launch_kernel(*given)
        if status:
            self._driver.check("cuLaunchKernel", status)


def code_for(found, capability, driver_version):
    """(code, target, whether it was in the cache) for a device of this compute capability, by the compiler `found`."""
    target, _ = found.target(capability)
    name = cubin_cache.key(cuda_source.SOURCE, compiler.OPTIONS, target, found.version, driver_version)
    code = cubin_cache.read(name)
    if code is not None:
        return code, target, True
    code, _ = found.compile(cuda_source.SOURCE, target)
    cubin_cache.write(name, code)
    return code, target, False


def load(index):
    """The fused kernel on CUDA device `index`. Raises CompilerError or DriverError, whose text says why not."""
    torch = sys.modules["torch"]
    began = time.monotonic()
    properties = torch.cuda.get_device_properties(index)
    driver = Driver()
    code, target, cached = code_for(compiler.find(), 10 * properties.major + properties.minor, driver.version())
    context, functions = driver.functions(index, code)
    facts = {
        "kernel": "nvrtc",
        "kernel_target": target,
        "kernel_cached": cached,
        "kernel_load_seconds": round(time.monotonic() - began, 3),
    }
    device = CudaDevice(index, driver, context, functions, properties.multi_processor_count)
    return Fused(device, facts, (DriverError,))
