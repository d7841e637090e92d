"""The child process that asks the NVIDIA driver, through pynvml: it and the nvml_*.py that it loads are all that touch NVML.

A driver call may sleep in the kernel for ever, so it must not happen in the daemon: this process asks, folds what it hears and
writes one JSON line a second (sampling_loop.py); the parent (supervisor.py) reads the lines, watches the heartbeat and restarts
what hangs. An unsupported value costs one call and is left out from then on.

    python -m gpuwatch.samplers.nvml_worker OPTIONS      as JSON: see sampling_loop.SamplingLoop
    python -m gpuwatch.samplers.nvml_worker --probe      prints what is there, and ends
"""

from __future__ import annotations

import json
import os
import sys

import pynvml

from gpuwatch.samplers.nvml_device import Device
from gpuwatch.samplers.nvml_driver import Driver
from gpuwatch.samplers.sampling_loop import DeviceGoneError, DriverGoneError, run


def open_gpu(driver: Driver, index: int) -> list[Device]:
    """The GPU with this index and its MIG devices. Raises DeviceGoneError when it does not answer."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        gpu = Device(driver, handle, index)
        migs = [Device(driver, mig, index, gpu, number) for number, mig, _ in gpu.mig_handles()]
    except pynvml.NVMLError as error:
        driver.failed("nvmlDeviceGetHandleByIndex", error.value)
        raise DeviceGoneError(str(error)) from None
    driver.watch_events(index, handle)
    return [gpu, *migs]


def probe() -> dict[str, object]:
    """What `gpuwatch doctor` asks: {"driver_version", "gpus": names}, or {"error": one sentence}."""
    try:
        driver = Driver()
        names = []
        for index in range(driver.count()):
            try:
                names.append(open_gpu(driver, index)[0].info["name"])
            except DeviceGoneError as gone:
                names.append(f"GPU {index}: {gone}")
    except DriverGoneError as gone:
        return {"error": str(gone)}
    return {"driver_version": driver.version, "gpus": names}


if __name__ == "__main__":
    if sys.argv[1:] == ["--probe"]:
        print(json.dumps(probe()), flush=True)
    else:
        run(Driver, open_gpu, sys.argv[1])
    os._exit(0)  # the kernel takes the driver from us; a thread that hangs in it has no say
