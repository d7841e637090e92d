"""Which kernel reads the tensors of a device: the fused one once it is there, until then and otherwise plain operators.

The fused kernel is asked for when a device's tensors are first seen, made ready off the training thread, and used from the
next step on: by NVRTC, else by Triton, as the setting `kernel` allows. What was taken, and what kept the better one away, are
facts of the run (`kernel`, `kernel_reason`), never errors.
"""

import signal
import sys
import threading

MAX_REASON_CHARS = 300


class Selection:
    """The kernels of one process. `load(name, index)` makes the fused one of a CUDA device; it may raise.

    `apart(function)` runs what takes too long for the control thread, which has a daemon to answer.
    """

    def __init__(self, session, load=None, apart=None):
        self._session = session
        self._load, self._apart = load or _load, apart or _apart
        self._fused = {}  # device index -> Fused, or None while it is not there
        self._wanted = None
        self._told_cpu = False

    def concerns(self, tensor):
        """Whether there could be a fused kernel for the device of `tensor`."""
        if not tensor.is_cpu:
            return True
        if not self._told_cpu:
            self._told_cpu = True
            self._tell({"kernel": "cpu"})
        return False

    def fused(self, device):
        """The fused kernel for tensors on `device` (torch.device), or None. Asks for it when the device is new; never waits."""
        if device.type != "cuda":
            return None
        wanted = self._session.settings.kernel
        if wanted != self._wanted:  # somebody has set it anew
            self._wanted, self._fused = wanted, {}
        index = device.index or 0
        try:
            return self._fused[index]
        except KeyError:
            self._fused[index] = None
            reason = _obstacle(wanted)
            if reason is not None:
                self._fall_back([reason])
            else:
                self._session.errand(lambda: self._make_ready(index, wanted))
            return None

    def retire(self, device, error):
        """The fused kernel has failed on `device`: plain operators from now on."""
        self._fused[device.index or 0] = None
        self._fall_back([_sentence(error)])

    def _make_ready(self, index, wanted):
        """On the control thread. NVRTC takes 2 s at most; Triton, where nothing is in the cache, some 10."""
        if wanted != self._wanted:
            return
        reasons = []
        if wanted != "triton" and self._use("nvrtc", index, wanted, reasons):
            return
        if wanted == "nvrtc":
            self._fall_back(reasons)
            return
        self._apart(lambda: self._use("triton", index, wanted, reasons) or self._fall_back(reasons))

    def _use(self, name, index, wanted, reasons):
        """Whether the kernel is there and used; if not, why, is added to `reasons`."""
        try:
            fused = self._load(name, index)
        except Exception as error:
            reasons.append("%s: %s" % (name, _sentence(error)))
            return False
        if wanted == self._wanted:
            self._tell(dict(fused.facts, kernel_reason="; ".join(reasons)[:MAX_REASON_CHARS]))
            self._fused[index] = fused  # one assignment: the training thread sees it whole or not at all
        return True

    def _fall_back(self, reasons):
        self._tell({"kernel": "foreach", "kernel_reason": "; ".join(reasons)[:MAX_REASON_CHARS]})

    def _tell(self, facts):
        self._session.meta(facts)


def _sentence(error):
    return "%s: %s" % (type(error).__name__, error)


def _obstacle(wanted):
    if wanted == "foreach":
        return "hooks.kernel is foreach"
    if getattr(sys.modules["torch"].version, "hip", None):
        return "ROCm has neither NVRTC nor programs for it by Triton"
    return None


def _load(name, index):
    if name == "triton":
        from . import triton_kernel

        return triton_kernel.load(index)
    from . import nvrtc

    return nvrtc.load(index)


def _apart(function):
    def run():
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        function()

    threading.Thread(target=run, name="gpuwatch-kernel", daemon=True).start()
