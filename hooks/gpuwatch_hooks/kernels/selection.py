"""Which kernel reads the tensors of a device: the fused one once it is there, until then and otherwise plain operators.

The fused kernel is asked for when a device's tensors are first seen, made ready on the control thread, and used from the
next step on. Whatever keeps it away is a fact of the run (`kernel`, `kernel_reason`), never an error.
"""

import os
import sys

#: `auto`, or `foreach` to stay with torch's own operators.
VARIABLE = "GPUWATCH_HOOKS_KERNEL"
MAX_REASON_CHARS = 300


class Selection:
    """The kernels of one process. `load(index)` makes the fused one of a CUDA device; it may raise."""

    def __init__(self, session, load=None):
        self._session = session
        self._load = load or _load
        self._fused = {}  # device index -> Fused, or None while it is not there

    def concerns(self, tensor):
        """Whether there could be a fused kernel for the device of `tensor`."""
        return not tensor.is_cpu

    def fused(self, device):
        """The fused kernel for tensors on `device` (torch.device), or None. Asks for it when the device is new; never waits."""
        if device.type != "cuda":
            return None
        index = device.index or 0
        try:
            return self._fused[index]
        except KeyError:
            self._fused[index] = None
            reason = _obstacle()
            if reason is not None:
                self._tell({"kernel": "foreach", "kernel_reason": reason})
            else:
                self._session.errand(lambda: self._make_ready(index))
            return None

    def retire(self, device, error):
        """The fused kernel has failed on `device`: plain operators from now on."""
        self._fused[device.index or 0] = None
        self._fall_back(error)

    def _make_ready(self, index):
        try:
            fused = self._load(index)
        except Exception as error:
            self._fall_back(error)
            return
        self._tell(fused.facts)
        self._fused[index] = fused  # one assignment: the training thread sees it whole or not at all

    def _fall_back(self, error):
        reason = "%s: %s" % (type(error).__name__, error)
        self._tell({"kernel": "foreach", "kernel_reason": reason[:MAX_REASON_CHARS]})

    def _tell(self, facts):
        self._session.meta(facts)


def _obstacle():
    torch = sys.modules["torch"]
    wanted = os.environ.get(VARIABLE, "auto").strip().lower()
    if wanted == "foreach":
        return "%s=foreach" % VARIABLE
    if getattr(torch.version, "hip", None):
        return "ROCm has no NVRTC"
    return None


def _load(index):
    from . import nvrtc

    return nvrtc.load(index)
