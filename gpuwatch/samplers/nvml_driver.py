"""An initialised NVML, and what its answers mean: which will never change, which say that a GPU or the driver has gone."""

from __future__ import annotations

import pynvml

from gpuwatch.samplers.nvml_events import Events
from gpuwatch.samplers.nvml_processes import ProcessLists
from gpuwatch.samplers.sampling_loop import DeviceGoneError, DriverGoneError

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would cost this process a megabyte
    from typing import Any

# Answers that will not change: the getter is dropped for this device.
_ABSENT = {
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_VGPU_ECC_NOT_SUPPORTED,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    pynvml.NVML_ERROR_DEPRECATED,
}
_NOTHING_YET = {pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_NO_DATA, pynvml.NVML_ERROR_NOT_READY}
_DEVICE_GONE = {pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_GPU_NOT_FOUND}
_DRIVER_GONE = {pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_DRIVER_NOT_LOADED}
# The library that this process has mapped will never fit the driver: only a new process can load another one.
_NEEDS_NEW_PROCESS = {pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH}
_CODES = {value: name[11:].lower() for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_")}


class Driver:
    """An initialised NVML; making one raises DriverGoneError when there is none."""

    def __init__(self, *, gpm: bool = False) -> None:
        """`gpm`: devices may read the counters of GPM where they have them."""
        self.gpm = gpm
        self.errors: dict[str, int] = {}  # "call|code" -> times since the last line
        try:
            pynvml.nvmlInit()
            self.version = str(pynvml.nvmlSystemGetDriverVersion())
        except pynvml.NVMLError as error:
            for_good = error.value in _NEEDS_NEW_PROCESS
            raise DriverGoneError(code_name(error.value), str(error), needs_new_process=for_good) from None
        early_r535 = self.function("nvmlDeviceGetConfComputeMemSizeInfo") and not self.function(
            "nvmlDeviceGetRunningProcessDetailList"
        )
        self.lists = ProcessLists(32 if early_r535 else 24)
        self._events = Events()

    def function(self, symbol: str) -> Any:
        """The library's function, or None when this driver is too old to have it."""
        return getattr(pynvml.nvmlLib, symbol, None)

    def failed(self, call: str, code: int) -> bool:
        """Judges an answer other than success: True when it will never be another one. Raises when somebody is gone."""
        if code in _ABSENT:
            return True
        if code not in _NOTHING_YET:
            self.count_error(call, code_name(code))
            sentence = str(pynvml.NVMLError(code))
            if code in _DEVICE_GONE:
                raise DeviceGoneError(sentence)
            if code in _DRIVER_GONE or code in _NEEDS_NEW_PROCESS:
                raise DriverGoneError(_CODES[code], sentence, needs_new_process=code in _NEEDS_NEW_PROCESS)
        return False

    def count_error(self, call: str, code: str) -> None:
        """One more failure for nvml_errors_total."""
        key = f"{call}|{code}"
        self.errors[key] = self.errors.get(key, 0) + 1

    def count(self) -> int:
        """How many GPUs there are; this touches none of them."""
        try:
            return int(pynvml.nvmlDeviceGetCount())
        except pynvml.NVMLError as error:
            self.failed("nvmlDeviceGetCount", error.value)
            raise DriverGoneError(code_name(error.value), str(error), needs_new_process=False) from None

    def watch_events(self, index: int, handle: Any) -> None:
        """From now on `take_events` tells of this GPU, too."""
        if self.function("nvmlEventSetWait_v2") is not None:
            self._events.watch(index, handle)

    def take_events(self) -> list[tuple[int, int, int]]:
        """What the driver has reported since the last time: (GPU index, Xid or 0 for news of wear, wall time in ns)."""
        for call, code in self._events.take_failures():
            if code not in _ABSENT:
                self.count_error(call, code_name(code))
        for _ in range(self._events.take_lost()):
            self.count_error("nvmlEventSetWait_v2", "event_lost")
        return self._events.take()

    def close(self) -> bool:
        """Lets go of the driver. False: a wait for events hangs in it, and the driver is ours until this process ends."""
        if not self._events.close():
            return False
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            return True  # a driver that went away has nothing to shut down
        return True


def code_name(code: int) -> str:
    """NVML's name of an error code without its prefix, such as gpu_is_lost."""
    return str(_CODES.get(code, code))
