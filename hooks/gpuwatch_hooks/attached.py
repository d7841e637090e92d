"""What an attach runs in a process that was started without us: begin to record, or take everything out again.

Both run in the main thread between two of its bytecodes and return a short status for the attacher to read. What takes long
and touches nothing of the job's is done before, by `Prepared`, on the thread that loads us.
"""

import json
import os
import platform
import socket
import sys
import threading
import time

from . import bootstrap, doorway, forks, identity, notices, session, settings, spare

#: Set by the loader: a callable that takes our modules and their finder out of the interpreter.
forget = None
_UNUSED_WITHIN_SECONDS = 2.0
#: So many gradients computed and no optimizer's step: it is not one that torch's hooks see.
_BACKWARDS_WITHOUT_STEP = 20
_LOOK_SECONDS = 0.2
_watching = False


class RefusedError(Exception):
    """The kernel denies this process something without which it cannot be recorded."""

    def __init__(self, what, error):
        super().__init__(what)
        self.answer = "refused: %s (%s)" % (what, error.strerror or error)


class Prepared:
    """What is made before the hooks go in: their session, a way to the daemon (or None), what the first step needs."""

    def __init__(self, options, pause):
        """On the thread that loads us; `pause()` lets the job run. Raises RefusedError, or OSError: no way is there."""
        _see_what_is_allowed()
        self.door = doorway.opened(options["doorway"]) if options.get("doorway") else None
        self.session = session.renewed()
        self.run = options.get("run") or identity.run_name()
        self.spare = _warmed(self.session, pause)

    def close(self):
        """Not needed after all."""
        self.spare.close()
        if not self.session.installed:
            forks.forget(self.session)
        if self.door is not None:
            os.close(self.door)


def _see_what_is_allowed():
    """A filter of a container's or of systemd's may refuse what no training needs; nobody sees that once the hooks are in."""
    try:
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).close()
    except OSError as error:
        raise RefusedError("a Unix socket", error) from None


def _warmed(current, pause):
    """A Spare, after kernels and encoders have run once: 6 ms that the first step would take longer. Raises RefusedError."""
    try:
        import torch

        from .kernels import cpu

        tensors = [torch.zeros(2, 2, dtype=torch.float32, device="cpu")]
        for measure in (cpu.norms, lambda some: cpu.table(some, None, None), lambda some: cpu.histograms(some, None)):
            with torch.no_grad():
                measure(tensors)
            pause()
    except Exception:  # noqa: S110 - the first step will say what is wrong
        pass
    platform.python_version()
    json.dumps({"t": identity.framework()})
    pause()
    try:
        return spare.Spare(current)
    except OSError as error:
        raise RefusedError("a file in memory, which the records go through", error) from None


def begin(options, prepared=None):
    """Put the hooks in. `options`: socket, run, the adjustable settings, told (a line for stderr, or None), doorway.

    Returns "installed", or "already" where hooks are in already: they stay as they are, with the new settings. "elsewhere":
    those talk to another daemon. "stepping" where a hook more would break a loop over the hooks that is under way; ask again.
    """
    current = session.renewed()
    adjustable = {name: options[name] for name in settings.ADJUSTABLE if options.get(name) is not None}
    if current.installed and not current.over:
        other = _other_daemon(current, options)
        if other is not None:
            return "elsewhere: %s" % other
        current.adjust(adjustable, explicit=True)
        return "already"
    if _in_hook_loop():
        return "stepping"
    path = options.get("socket") or current.settings.socket
    if prepared is not None:
        current.spare, current.door = prepared.spare, prepared.door
        if prepared.door is not None:
            path = doorway.path_through(prepared.door, os.path.basename(path))
    current.settings = current.settings._replace(socket=path)
    current.run = prepared.run if prepared is not None else options.get("run") or identity.run_name()
    current.attached = True
    if forget is not None:
        current.at_end = _forget_when_unused
    bootstrap.start(adjustable)
    if current.over or current.recorder is None:
        if forget is not None:
            forget()
        return "failed: the hooks could not be installed; its standard error says why"
    current.meta({"attached": options.get("method", "attach")})
    if prepared is None:
        _tell(options)
    return "installed"


def _other_daemon(current, options):
    """The socket of a daemon other than the asked one that hears these hooks, or None. Hooks that nobody hears are led to the
    asked one: theirs may never come back (a `gpuwatch attach --logdir` that was killed)."""
    asked, theirs = options.get("socket"), current.settings.socket
    if not asked or asked == theirs or options.get("doorway"):
        return None
    if current.control is not None and current.control.is_connected():
        return theirs
    current.settings = current.settings._replace(socket=asked)
    return None


def _tell(options):
    if options.get("told"):
        notices.say_once(options["told"])


def stay(prepared, options):
    """On the thread that has loaded us: say that we are here, and wait for the first step, whose control thread it starts.

    Says so where gradients come and no step ever does.
    """
    global _watching  # noqa: PLW0603 - one attach at a time
    current = prepared.session

    def look():
        recorder = current.recorder
        if options.get("told") and recorder is not None and recorder.backwards >= _BACKWARDS_WITHOUT_STEP and not current.armed:
            notices.say_once(
                "gradients are computed, but there is no step of a torch optimizer: one that does not derive from "
                "torch.optim.Optimizer is not seen, and nothing is recorded"
            )

    _watching = True
    try:
        _tell(options)
        prepared.spare.wait(look, _LOOK_SECONDS)
    except RuntimeError as error:
        current.cannot_begin(error)
    finally:
        _watching = False


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
        if not _in_hook_loop():
            current.ledger.sweep()
    if current.control is not None:
        current.control.ask_to_stop()
        if current.control.is_alive():
            return "leaving"
    if forget is not None:
        if inside or _watching:
            return "inside" if inside else "leaving"
        forget()
    return "absent" if gone and forget is None else "detached"


def _in_hook_loop():
    """Whether a thread is in the middle of torch's loop over its step hooks: the table must not grow or shrink under it."""
    optimizer = sys.modules.get("torch.optim.optimizer")
    if optimizer is None:
        return False
    hooks = [*optimizer._global_optimizer_pre_hooks.values(), *optimizer._global_optimizer_post_hooks.values()]
    codes = [_code(hook) for hook in hooks]
    if not codes:
        return False
    for innermost in sys._current_frames().values():
        inner, frame = None, innermost
        while frame is not None:
            in_step = frame.f_code.co_name == "wrapper" and frame.f_globals is vars(optimizer)
            if in_step and (inner is None or inner.f_code in codes):
                return True
            inner, frame = frame, frame.f_back
    return False


def _code(hook):
    hook = getattr(hook, "func", hook)  # a partial
    return getattr(hook if hasattr(hook, "__code__") else type(hook).__call__, "__code__", None)


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
