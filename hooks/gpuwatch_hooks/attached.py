"""What an attach runs in a process that was started without us: begin to record, or take everything out again.

Both run in the main thread between two of its bytecodes and return a short status for the attacher to read. What takes long
and touches nothing of the job's is done before, by `prepared`, on the thread that loads us.
"""

import sys
import threading
import time

from . import bootstrap, identity, notices, session, settings, spare_ring

#: Set by the loader: a callable that takes our modules and their finder out of the interpreter.
forget = None
_UNUSED_WITHIN_SECONDS = 2.0


def prepared():
    """A ring for the session to come, and kernels that have run once: 5 ms that the first step would take longer. Or None."""
    try:
        import torch

        from .kernels import cpu

        with torch.no_grad():
            tensors = [torch.zeros(2, 2, dtype=torch.float32, device="cpu")]
            cpu.norms(tensors)
            cpu.table(tensors, None, None)
            cpu.histograms(tensors, None)
        return spare_ring.SpareRing(settings.from_environment()[0].ring_slots)
    except Exception:
        return None  # the first step will say what is wrong


def begin(options, spare=None):
    """Put the hooks in. `options`: socket, run, the adjustable settings, told (a line for stderr, or None).

    Returns "installed", or "already" where hooks are in already: they stay as they are, with the new settings.
    """
    current = session.renewed()
    current.spare_ring = spare
    adjustable = {name: options[name] for name in settings.ADJUSTABLE if options.get(name) is not None}
    if current.installed and not current.over:
        current.adjust(adjustable, explicit=True)
        return "already"
    current.settings = current.settings._replace(socket=options.get("socket") or current.settings.socket)
    current.run = options.get("run") or identity.run_name()
    current.attached = True
    if forget is not None:
        current.at_end = _forget_when_unused
    bootstrap.start(adjustable)
    if current.over or current.recorder is None:
        if forget is not None:
            forget()
        return "failed: the hooks could not be installed; its standard error says why"
    current.meta({"attached": options.get("method", "attach")})
    if options.get("told"):
        notices.say_once(options["told"])
    return "installed"


def end(inside):
    """Take the hooks out: patches, hooks, thread, descriptors, ring, and, where an attach brought them, the modules.

    `inside`: this thread was interrupted in one of our functions, which must not find its modules gone when it goes on.
    Never waits in the job's main thread: "leaving" while our own thread delivers the last records, "inside"; ask again.
    """
    current = session.current()
    if not current.installed:
        return "absent"
    gone = current.over
    if not gone:
        current.leave("detached")
    if current.control is not None:
        current.control.ask_to_stop()
        if current.control.is_alive():
            return "leaving"
    if forget is not None:
        if inside:
            return "inside"
        forget()
    return "absent" if gone and forget is None else "detached"


def _forget_when_unused():
    """On our own thread, its last act: take the modules out once no thread of the job is inside one of our functions."""
    deadline = time.monotonic() + _UNUSED_WITHIN_SECONDS
    while _is_in_use():
        if time.monotonic() > deadline:
            return
        time.sleep(0.005)
    forget()


def _is_in_use():
    package, me = __name__.partition(".")[0], threading.get_ident()
    for thread, innermost in sys._current_frames().items():
        frame = innermost
        while frame is not None and thread != me:
            if str(frame.f_globals.get("__name__", "")).partition(".")[0] == package:
                return True
            frame = frame.f_back
    return False
