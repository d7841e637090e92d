"""The CUDA driver by its own API, called by ctypes: modules are loaded and kernels launched without a compiler or a wait.

Loading may make the driver wait for the device: it belongs on the control thread, never in the middle of a step.
"""

import collections
import contextlib
import ctypes

#: For cuThreadExchangeStreamCaptureMode.
_RELAXED = 2
_REGISTERS = 4  # CU_FUNC_ATTRIBUTE_NUM_REGS
NO_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT

#: A loaded kernel: the driver's handle, the registers that a thread takes, and its binary.Kernel.
Function = collections.namedtuple("Function", ("handle", "registers", "kernel"))


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

    @contextlib.contextmanager
    def relaxed(self):
        """What this thread does meanwhile, loading or waiting, does not spoil a CUDA graph that another one captures."""
        mode = ctypes.c_int(_RELAXED)
        self.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
        try:
            yield
        finally:
            self.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))

    def functions(self, index, binaries):
        """(context, {name: Function}) of the kernels in `binaries` (binary.py), loaded into the primary context of a device."""
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), index)
        # kept for the life of the process, as torch does itself
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        with self.relaxed():
            self.call("cuCtxPushCurrent_v2", context)
            try:
                return context, self._load(binaries)
            finally:
                self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _load(self, binaries):
        found = {}
        for binary in binaries:
            module = ctypes.c_void_p()
            self.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(binary.code))
            found.update((name, self._function(module, kernel)) for name, kernel in binary.kernels.items())
        return found

    def _function(self, module, kernel):
        function, registers = ctypes.c_void_p(), ctypes.c_int()
        self.call("cuModuleGetFunction", ctypes.byref(function), module, kernel.symbol.encode())
        # asking also loads it: lazily loaded functions arrive at their first launch, which is in the middle of a step
        self.call("cuFuncGetAttribute", ctypes.byref(registers), _REGISTERS, function)
        return Function(function.value, registers.value, kernel)
