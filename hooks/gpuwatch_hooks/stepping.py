"""How `optimizer.step` was called: with a closure, or from inside another step."""

import sys
import time

from . import untraced

_now = time.perf_counter_ns
_MAX_FRAMES = 200


def count_closure(part, clock, guard, args, kwargs):
    """Let the closure of `step(closure)`, which computes the gradients inside the step, count its calls in the part.

    Returns the (args, kwargs) to call step with instead, as torch's pre-hooks may, or None where there is no closure.
    """
    closure = kwargs.get("closure") if "closure" in kwargs else args[1] if len(args) > 1 else None
    if not callable(closure):
        return None
    part.closure_calls = 0

    def begins():
        part.closure_calls += 1
        clock.enter("forward", _now())

    def ends():
        clock.leave(_now())

    begin, end = guard.wrap("recorder", begins), guard.wrap("recorder", ends)

    def counted(*closure_args, **closure_kwargs):
        begin()
        try:
            return closure(*closure_args, **closure_kwargs)
        finally:
            end()

    untraced.stand_in(counted, closure)
    if "closure" in kwargs:
        return args, dict(kwargs, closure=counted)
    return (args[0], counted, *args[2:]), kwargs


def depth():
    """How many optimizer steps are running on this thread's stack: a subclass may call super().step(), and both are hooked."""
    found, frame = 0, sys._getframe(1)
    for _ in range(_MAX_FRAMES):
        if frame is None:
            break
        if frame.f_code.co_name == "wrapper" and frame.f_globals.get("__name__") == "torch.optim.optimizer":
            found += 1
        frame = frame.f_back
    return found
