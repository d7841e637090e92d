"""Which kernel a job would use here, and why; `python -m gpuwatch_hooks.kernels.outlook` prints it as JSON for doctor.

Nothing is compiled or loaded: the compilers are found, and asked whether they know the device.
"""

import json

from .. import settings
from . import compiler, driver, triton_compiler


def look(wanted="auto"):
    """{"kernel", "detail": one line, "missing": why not a better one, or ""}. Needs torch."""
    import torch

    if not torch.cuda.is_available():
        built = "sees no CUDA device" if torch.backends.cuda.is_built() else "is built without CUDA"
        return {"kernel": "cpu", "detail": "torch %s %s" % (torch.__version__, built), "missing": ""}
    properties = torch.cuda.get_device_properties(0)
    capability = 10 * properties.major + properties.minor
    named = "%s (compute capability %d.%d)" % (properties.name, properties.major, properties.minor)
    return choose(named, capability, wanted, bool(getattr(torch.version, "hip", None)))


def choose(named, capability, wanted, hip=False):
    """As `look`, for a device of this name and compute capability (90 ...)."""
    if wanted == "foreach":
        return {"kernel": "foreach", "detail": "%s; asked for by hooks.kernel" % named, "missing": ""}
    if hip:
        return {"kernel": "foreach", "detail": named, "missing": "there is no fused kernel for ROCm"}
    reasons = []
    for name, find in (("nvrtc", _nvrtc), ("triton", _triton)):
        if wanted not in ("auto", name):
            continue
        try:
            driver.Driver()
            return {"kernel": name, "detail": "%s; %s" % (named, find(capability)), "missing": "; ".join(reasons)}
        except (compiler.CompilerError, driver.DriverError, triton_compiler.TritonError) as error:
            reasons.append("%s: %s" % (name, error))
    return {"kernel": "foreach", "detail": named, "missing": "; ".join(reasons)}


def _nvrtc(capability):
    found = compiler.find()
    target, _ = found.target(capability)
    return "NVRTC %d.%d for %s, %s" % (*found.version, target, found.path)


def _triton(capability):
    return "Triton %s for sm_%d" % (triton_compiler.version(), capability)


if __name__ == "__main__":
    print(json.dumps(look(settings.from_environment()[0].kernel)))
