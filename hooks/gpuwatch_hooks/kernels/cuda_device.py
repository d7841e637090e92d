"""A CUDA device as the fused kernel uses it: memory and streams are torch's, launches the driver's. Nothing waits."""

import ctypes

from .driver import NO_CONTEXT


class CudaDevice:
    """What fused.py asks of a device; see there."""

    def __init__(self, index, driver, context, functions, processors):
        import torch

        self.processors = processors
        self._driver, self._context = driver, context
        self._current_device, self._on_device = torch._C._cuda_getDevice, torch.cuda.device
        self._functions = {
            name: (found.handle, found.kernel.threads, found.kernel.shared_bytes, (0,) * found.kernel.spare_arguments)
            for name, found in functions.items()
        }
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

    def launch(self, kernel, blocks, arguments):
        if self._current_device() != self._index:  # the default stream is that of the current device
            with self._on_device(self._index):
                self._launch(kernel, blocks, arguments)
        else:
            self._launch(kernel, blocks, arguments)

    def _launch(self, kernel, blocks, arguments):
        function, threads, shared_bytes, spare = self._functions[kernel]
        arguments += spare
        count = len(arguments)
        cells = (ctypes.c_uint64 * count)(*arguments)
        start = ctypes.addressof(cells)
        places = (ctypes.c_uint64 * count)(*range(start, start + 8 * count, 8))
        given = (function, blocks, 1, 1, threads, 1, 1, shared_bytes, self.stream(), ctypes.addressof(places), None)
        status = self._driver.launch_kernel(*given)
        if status == NO_CONTEXT:  # a thread on which torch has not called the CUDA runtime yet
            self._driver.call("cuCtxSetCurrent", self._context)
            status = self._driver.launch_kernel(*given)
        if status:
            self._driver.check("cuLaunchKernel", status)
