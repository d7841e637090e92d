"""The precision of a model's forward pass, switched from outside: hooks on the module that open and close an autocast region.

The region is inside whatever region the job itself has open, and so decides. What the module returns in half precision
because of us is given back in float32, as the job's loss expects from a model in float32.
"""

import contextlib
import sys
import threading

from .. import untraced
from .outputs import in_float32

#: name -> (dtype of torch by name, or None: no autocast; whether TF32 may be used)
VARIANTS = {
    "float32": (None, False),
    "tf32": (None, True),
    "float16": ("float16", True),
    "bfloat16": ("bfloat16", True),
}


class _Hook:
    """What stands in a module's tables. A copy of the module (an average of its weights, a file) gets one that does nothing.

    What the copy gets is of the standard library, so that it can be loaded where we are not.
    """

    def __init__(self, function):
        self._function = function

    def __call__(self, *args):
        return self._function(*args)

    def __reduce__(self):
        return getattr, (contextlib.nullcontext(), "__exit__")


untraced.hide(_Hook.__call__)


class _Region:
    """An outermost forward pass that is under way: its autocast region or None, and the frame of the module's call."""

    def __init__(self, frame):
        self.frame = frame
        self.depth = 0  # modules of ours inside the outermost one
        self.autocast = None
        self.inside = False  # another region, opened by the job, which will close it itself


class Switch:
    """Puts the forward passes of `modules` under `variant` (a key of VARIANTS; None: as the job has it). `remove` it.

    `opening()` is called before each outermost forward pass in train mode and says whether the region may be opened.
    `switched`: those of `modules` whose precision changes, None for all; the others' outermost calls are only told of.
    """

    def __init__(self, modules, device_type, training_only=False, opening=None, switched=None):
        self.variant = None
        self.forwards = 0  # outermost calls seen
        self.calls = None  # a Calls that is told of those in train mode, or None
        self._switched = None if switched is None else {id(module) for module in switched}
        self._device_type = device_type
        self._training_only = training_only  # a validation pass in between is none of ours
        self._opening = opening
        self._mine = threading.local()  # autocast is a thread's own, and DataParallel calls replicas in threads
        self._open = []  # regions of all threads
        self._over = False
        self._tf32 = None
        self._handles = []
        try:
            for module in modules:
                self._handles.append(module.register_forward_pre_hook(_Hook(self._entering), prepend=True, with_kwargs=True))
                self._handles.append(module.register_forward_hook(_Hook(self._leaving), always_call=True))
        except BaseException:  # passed on: nobody could take out the ones that are in
            self.remove()
            raise

    def remove(self):
        """Take the hooks out, and TF32 back. From any thread: a forward pass that is under way closes its region first."""
        self._over = True
        if not self._open:
            self._take_out()
        self.set(None)

    def _take_out(self):
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.remove()

    def set(self, variant):
        """Switch, between two steps."""
        self.variant = variant
        torch = sys.modules["torch"]
        if self._device_type != "cuda":
            return
        flags = torch.backends.cuda.matmul, torch.backends.cudnn
        if variant is None:
            if self._tf32 is not None:
                for flag, value in zip(flags, self._tf32):
                    flag.allow_tf32 = value
                self._tf32 = None
            return
        if self._tf32 is None:
            self._tf32 = [flag.allow_tf32 for flag in flags]
        dtype, tf32 = VARIANTS[variant]
        if dtype is None:
            for flag in flags:
                flag.allow_tf32 = tf32

    def region(self, variant):
        """A torch.autocast of the variant."""
        torch = sys.modules["torch"]
        name, _ = VARIANTS[variant]
        if name is None:
            return torch.autocast(self._device_type, enabled=False)
        return torch.autocast(self._device_type, dtype=getattr(torch, name))

    def _entering(self, module, args, kwargs=None):  # a table that changes meanwhile makes torch leave kwargs out
        if self.calls is not None and module.training:
            self.calls.entered.add(id(module))
        current = getattr(self._mine, "region", None)
        if current is not None:
            if _is_running(current.frame):
                current.depth += 1
                return
            self._abandon(current)  # Ctrl-C in the middle of a forward pass: torch calls no hook behind it
        region = self._mine.region = _Region(sys._getframe(2))
        self._open.append(region)
        if self._over:  # read behind the append: `remove` looks at them in the other order
            self._close(region)
            return
        self.forwards += 1
        training = module.training or not self._training_only
        if self.calls is not None and training:
            self.calls.add(module, args, kwargs or {})
        may = self._opening() if self._opening is not None and training else True
        ours = self._switched is None or id(module) in self._switched
        if self.variant is not None and training and may and ours:
            region.inside = _nesting() > 0
            region.autocast = self.region(self.variant)
            region.autocast.__enter__()

    def _leaving(self, _module, _args, output):
        region = getattr(self._mine, "region", None)
        if region is None:
            return None
        if region.depth:
            region.depth -= 1
            return None
        variant = self.variant
        autocast = region.autocast
        if autocast is not None:
            autocast.__exit__(None, None, None)
        self._close(region)
        return in_float32(output) if autocast is not None and VARIANTS[variant or "float32"][0] else None

    def _abandon(self, region):
        """The region of a forward pass that an exception like KeyboardInterrupt has ended."""
        torch = sys.modules["torch"]
        if region.autocast is not None and not region.inside:
            region.autocast.__exit__(None, None, None)
        elif region.autocast is not None:
            torch.autocast_decrement_nesting()  # the job's own region has put everything else back already
            torch.clear_autocast_cache()
        self._close(region)

    def _close(self, region):
        self._mine.region = None
        self._open.remove(region)
        if self._over and not self._open:
            self._take_out()


def _nesting():
    """How many autocast regions this thread is in."""
    torch = sys.modules["torch"]
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _is_running(wanted):
    frame = sys._getframe(1)
    while frame is not None:
        if frame is wanted:
            return True
        frame = frame.f_back
    return False
