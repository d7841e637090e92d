"""What somebody asks of a running job: a profiler trace of some steps, or a snapshot of the device allocator.

Both travel over the control path, packed, from its thread; the result carries the ticket of who asked as its tag. Whatever
goes wrong is told as a fact under that ticket, so that nobody waits for nothing.
"""

import gzip
import os
import pickle
import sys
import tempfile
import threading
import time

from . import pending, wire

MAX_TRACE_STEPS = 100
#: A trace ends after this much time, however many steps were asked for: a validation pass in between is recorded too.
MAX_TRACE_SECONDS = 60.0
#: How long somebody who takes the hooks out waits for the training thread, on which alone a profiler can be stopped.
LEAVE_SECONDS = 5.0
SNAPSHOT_TAG = "out_of_memory"


def begin(session, request):
    """Do what the daemon passed on: {"t": "trace", "steps", "ticket"} or {"t": "snapshot", "ticket"}. On the control thread."""
    ticket = request.get("ticket")
    ticket = ticket if isinstance(ticket, int) and not isinstance(ticket, bool) else 0
    if request.get("t") == "snapshot":
        snapshot(session, str(ticket))
        return
    steps = request.get("steps")
    steps = steps if isinstance(steps, int) and 0 < steps <= MAX_TRACE_STEPS else 3
    recorder = session.recorder
    if recorder is None:
        return
    if any(isinstance(probe, Trace) for probe in recorder.probes):
        refuse(session, ticket, "a trace is being taken already")
        return
    recorder.admit(Trace(steps, ticket))


def refuse(session, ticket, reason):
    """Tell whoever waits for the ticket why there is nothing."""
    session.meta({"on_demand_ticket": ticket, "on_demand_failed": reason})


class Trace:
    """A probe for a few steps: torch.profiler from the end of one optimizer step to that of another."""

    name = "trace"

    def __init__(self, steps, ticket):
        self._steps = steps
        self._ticket = ticket
        self._profiler = self._timer = self._thread = None
        self._over = False
        self._taken = 0
        self._began = 0.0

    def install(self, recorder):
        self._recorder = recorder

    def after(self, part):
        if not part.complete or self._over:
            return
        try:
            self._advance(part)
        except Exception as error:
            self._profiler = None
            self._finish()
            refuse(self._recorder.session, self._ticket, "%s: %s" % (type(error).__name__, str(error).partition("\n")[0][:200]))

    def remove(self):
        """The hooks leave while a trace is being taken: stop the profiler, drop what it has."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._profiler is not None:
            self._stop()
            refuse(self._recorder.session, self._ticket, "the hooks were taken out meanwhile")

    def _stop(self):
        """Torch's profiler is its thread's own: stopped on another one it would record on, and fill memory, for ever."""
        if self._recorder.on_training_thread():
            self._take_and_stop()
        elif self._thread == threading.main_thread().ident:
            pending.call(self._take_and_stop, LEAVE_SECONDS)

    def _take_and_stop(self):
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()

    def _out_of_time(self):
        """On the timer's thread: no step has ended for so long that the profiler only fills the job's memory."""
        self._stop()
        if self._profiler is None and not self._over:
            self._finish()
            refuse(self._recorder.session, self._ticket, "no step ended within %g s: the trace was dropped" % MAX_TRACE_SECONDS)

    def _finish(self):
        self._over = True
        self._recorder.dismiss(self)
        if self._timer is not None:
            self._timer.cancel()

    def _advance(self, part):
        torch = sys.modules["torch"]
        if self._profiler is None:
            from torch import profiler

            if torch.autograd._profiler_enabled():
                raise RuntimeError("the job is using torch's profiler itself")
            activities = [profiler.ProfilerActivity.CPU]
            if torch.cuda.is_initialized():
                activities.append(profiler.ProfilerActivity.CUDA)
            self._profiler = profiler.profile(activities=activities)
            self._profiler.start()
            self._thread = threading.get_ident()
            self._began = time.monotonic()
            self._timer = threading.Timer(MAX_TRACE_SECONDS, self._out_of_time)
            self._timer.daemon = True
            self._timer.start()
            return
        self._taken += 1
        if self._taken < self._steps and time.monotonic() - self._began < MAX_TRACE_SECONDS:
            return
        done, self._profiler = self._profiler, None
        done.stop()  # waits for the device; on this thread, where the profiler was started
        self._finish()
        session, ticket = self._recorder.session, self._ticket
        session.media("trace", str(ticket), part.step, (self._taken,), lambda: packed_trace(session, ticket, done))


def packed_trace(session, ticket, profiler):
    """The trace as gzip of Chrome's JSON. The profiler writes to a path only, so it passes through a private temporary file."""
    with tempfile.TemporaryDirectory(prefix="gpuwatch-") as folder:  # 0700
        path = os.path.join(folder, "trace.json")
        profiler.export_chrome_trace(path)
        with open(path, "rb") as file:
            data = gzip.compress(file.read(), 5)
    if len(data) > wire.MAX_MEDIA_BYTES:
        text = "the trace takes %.0f MiB packed, and %d are carried: ask for fewer steps"
        refuse(session, ticket, text % (len(data) / 2**20, wire.MAX_MEDIA_BYTES >> 20))
        raise ValueError("a trace that is too large")
    return data


def snapshot(session, tag):
    """The state of CUDA's caching allocator, as torch.cuda.memory._snapshot gives it, pickled for pytorch.org/memory_viz."""
    torch = sys.modules["torch"]
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        refuse(session, int(tag) if tag.isdigit() else 0, "this process uses no CUDA allocator")
        return
    data = gzip.compress(pickle.dumps(torch.cuda.memory._snapshot()), 5)
    session.media("memory_snapshot", tag, session.step, (len(data),), data)


def at_out_of_memory(session):
    """Have a snapshot taken when CUDA's allocator fails, before the error is raised: once in a process's life.

    The observer cannot be taken out again; after a detach it does nothing.
    """
    torch = sys.modules["torch"]
    attach = getattr(torch._C, "_cuda_attach_out_of_memory_observer", None)
    if attach is None or not torch.cuda.is_initialized():
        return False
    taken = []

    def observe(*_sizes):
        if not taken and not session.over:
            taken.append(True)
            session.guard.run("snapshot", snapshot, session, SNAPSHOT_TAG)

    attach(observe)
    return True
