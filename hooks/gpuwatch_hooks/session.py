"""One process's recording: it owns the settings, the ledger, the guard, the ring, the outbox and the control thread.

    new -> installed (patches in, nothing else) -> armed (first optimizer step: ring, thread) -> over

Everything here may be called from any thread at any time, also in a forked child and after the end: it then does nothing.
"""

import atexit
import collections
import os
import struct
import sys
import threading
import time
import uuid

from . import control, exhaustion, forks, identity, notices, outbox, patching, ring, settings, wire
from .guard import Guard

MAX_EARLY_EVENTS = 16
MIN_SLOTS = 8
_LAST_STEP = struct.Struct("<Q")


class Session:
    """See the module. `settings` is replaced, never changed: read it once a step."""

    def __init__(self):
        self.settings, self._complaints = settings.from_environment()
        self.run = self.settings.run or identity.run_name()
        self.token = self.settings.token or identity.job_token()
        self.attempt_id = None
        self.device = "cpu"  # the recorder says otherwise before it arms
        self.ledger = patching.Ledger()
        self.guard = Guard(self._on_fault, self._on_probe_off)
        self.outbox = outbox.Outbox()
        self.ring = None
        self.spare = None  # ring and control thread, made before they are needed, by an attach
        self.door = None  # descriptor of the daemon's folder, where an attach has passed one
        self.recorder = None
        self.control = None
        self.announces_absence = False  # whether somebody who called us by name is told when no daemon answers
        self.installed = False
        self.armed = False
        self.over = False  # ended, detached, refused, silenced by a fork, or never able to begin
        self.attached = False  # put into a running job, which may outlive our daemon by weeks
        self.at_end = None  # called on the control thread when it has gone after a detach
        self.renewable = False  # detached: an explicit start may make a new session
        self._writer = {}
        self._arming = {}
        self._drops = collections.deque()
        self._early_events = collections.deque(maxlen=MAX_EARLY_EVENTS)
        self._last_step_head = None
        self._finalizer = None

    # ------------------------------------------------------------------------------------------------- installation
    def install(self):
        """Put the probes in (torch is imported). Idempotent. Nothing is recorded before the first optimizer step."""
        if self.installed or self.over:
            return
        self.installed = True
        for complaint in self._complaints:
            notices.say_once(complaint)
        from .recorder import Recorder

        try:
            self.recorder = Recorder(self)
            self.recorder.install()
        except Exception as error:
            self.over = True
            self.ledger.remove()
            notices.say_once("the hooks could not be installed (%s: %s); training goes on" % (type(error).__name__, error))

    def arm(self):
        """Begin to record: make the ring, start the control thread. True when recording; cheap when it already is."""
        if self.armed or self.over:
            return not self.over
        data = sys.modules.get("torch.utils.data")
        if data is not None and data.get_worker_info() is not None:
            return False  # a DataLoader's worker, forked before its parent's first step: whatever it does, it is no rank
        me = threading.get_ident()
        if self._arming.setdefault("thread", me) != me:
            return False  # another thread's first step is at it: two would make two rings, and two runs
        try:
            self._begin()
        except Exception as error:
            self.cannot_begin(error)
            return False
        atexit.register(self._at_exit)
        self._finalizer = _at_worker_exit(self._at_exit)
        self.armed = True
        while self._early_events:
            self.event(*self._early_events.popleft())
        return True

    def _begin(self):
        spare, self.spare = self.spare, None
        if spare is not None and spare.is_ours():
            self.attempt_id, self.ring, self.control = spare.attempt_id, spare.ring, spare.control
            spare.start_control()
            return
        self.attempt_id = uuid.uuid4().hex  # not before: a process that forks its ranks has one session for all of them
        self.ring = ring.RingWriter(self.settings.ring_slots)
        self.control = control.Control(self)
        forks.watch(self)
        self.control.start()

    def cannot_begin(self, error):
        """There is no memory for a ring, or no thread to be had: the process goes on unrecorded, and is told."""
        self.over = self.renewable = True
        forks.forget(self)
        recorder, self.recorder = self.recorder, None
        if recorder is not None:
            self.guard.run("remove", recorder.remove)
        self.ledger.remove()
        if self.control is not None:
            self.control.abandon()
        if self.armed:
            self.release()  # the first step goes on meanwhile
        elif self.ring is not None:
            self.ring.close()
        notices.say_once("this process cannot be recorded (%s: %s); training goes on" % (type(error).__name__, error))

    def deliver_at_exit(self):
        """At interpreter exit, for a process that logged but never took a step: hand over what waits in the outbox."""
        if self.armed or self.over or self.outbox.is_idle():
            return
        self.attempt_id = uuid.uuid4().hex
        self.ring = ring.RingWriter(MIN_SLOTS)
        self.control = control.Control(self)
        self.armed = True
        self._write_end("exit")
        self.control.deliver_here()
        self.over = True

    # ------------------------------------------------------------------------------------------------------- records
    def write(self, kind, head, body=b""):
        """One record into the ring, head and body bytes-like of itemsize 1. False when it was dropped (and counted).

        One thread at a time: whoever comes second drops its record instead of waiting.
        """
        if self.over or not self.armed:
            return False
        # setdefault is one atomic step and, unlike a lock, not lost when Ctrl-C lands just behind it: the same thread
        # gets in again.
        me = threading.get_ident()
        if self._writer.setdefault("writer", me) != me:
            self.drop("busy_writer")
            return False
        try:
            while self._drops:
                self.ring.count_dropped(self._drops.popleft())
            if kind == wire.KIND_STEP:
                self._last_step_head = head
            return self.ring.write(kind, head, body)
        finally:
            self._writer.pop("writer", None)

    def drop(self, reason):
        """Count a record that was lost before it reached the ring; `reason` is one of wire.DROP_REASONS."""
        if not self.over:
            self._drops.append(reason)

    def event(self, code, step, value, text):
        """An EVENT record; `code` is one of wire.EVENT_CODES. Before the first step it waits for the ring."""
        if not self.armed and not self.over:
            self._early_events.append((code, step, value, text))
            return False
        raw = text.encode("utf-8", "replace")[: wire.MAX_EVENT_TEXT_BYTES].decode("utf-8", "ignore").encode()
        head = wire.EVENT_HEAD.pack(max(0, int(step)), wire.EVENT_CODES.index(code), float(value))
        return self.write(wire.KIND_EVENT, head, raw)

    def names(self, table, version, first, names, numels=()):
        """Names for rows `first`... of a name table (one of wire.NAME_TABLES); a new version replaces the table."""
        if not self.over:
            self.outbox.put_names(table, version, first, names, numels)

    def scalar(self, tag, step, value):
        """A value under the job's own tag and on its own step axis."""
        if not self.over:
            self.outbox.put_scalar(tag, step, value)

    def media(self, kind, tag, step, shape, data, held_bytes=0):
        """Images, histogram, figure or text (wire.MEDIA_KINDS); `data`: bytes-like, or a callable run on the control thread.

        `held_bytes`: the memory that `data` keeps until then; ask `has_media_room` before making it.
        """
        return not self.over and self.outbox.put_media(kind, tag, step, shape, data, held_bytes)

    def has_media_room(self, held_bytes):
        """Whether `media` would take data of this size now; a refusal is counted as a drop."""
        return not self.over and self.outbox.has_media_room(held_bytes)

    def meta(self, facts):
        """Facts about the run: a flat dict of str, int, float, bool."""
        if not self.over:
            self.outbox.put_facts(facts)

    def errand(self, function):
        """Have the control thread call `function` soon, once: for what takes too long in the middle of a step."""
        if self.control is not None and not self.over:
            self.control.errands.append(function)

    @property
    def step(self):
        """Number of the last optimizer step; 0 before the first."""
        return self.recorder.iteration if self.recorder is not None else 0

    # ------------------------------------------------------------------------------------------------------ settings
    def adjust(self, changes, explicit):
        """Take adjustable settings from a dict; see settings.adjusted."""
        self.settings = settings.adjusted(self.settings, changes, explicit)

    def probe_amp(self, request):
        """Measure in the running job what mixed precision brings; `request` as amp/live.py reads it."""
        from .amp import live

        self.guard.run("amp_probe", live.begin, self.recorder, request)

    def serve(self, request):
        """Take a trace or a snapshot; `request` as on_demand.py reads it."""
        from . import on_demand

        self.guard.run("on_demand", on_demand.begin, self, request)

    # ----------------------------------------------------------------------------------------------------------- end
    def end(self, reason):
        """END record, then give the control thread its time to deliver. `reason` is one of wire.END_REASONS."""
        if self.over:
            return
        if self.armed:
            self._flush()
            self._write_end(reason)
        self.over = True
        if self.control is not None:
            self.control.stop()

    def detach(self):
        """Take everything out without a trace: patches, hooks, thread, descriptors, memory."""
        if not self.over:
            self.leave("detached")
            if self.control is not None:
                self.control.stop(patient=True)

    def leave(self, reason):
        """Take the patches out and stop recording, from any thread; with a `reason`, write an END record first."""
        if self.over:
            return
        recorder, self.recorder = self.recorder, None  # with it goes what the probes hold of the user's objects
        if recorder is not None:
            self.guard.run("remove", recorder.remove)
        self.ledger.remove()
        if self.armed and reason is not None:
            self._write_end(reason)
        self.over = self.renewable = True
        self._close_spare()
        forks.forget(self)
        if not self.armed:
            self._shut_door()
        self._forget_exit()

    def silence(self):
        """In a forked child of a recording process: never again a record, a thread or a descriptor of ours."""
        if not self.armed:
            self.outbox.forget_logged()
            self._close_spare()
            return
        self.over = True
        self.renewable = False
        self.ring.silent = True
        self.ledger.remove()
        self._forget_exit()
        self.control.abandon()
        self._shut_door()

    def _close_spare(self):
        spare, self.spare = self.spare, None
        if spare is not None:
            spare.close()

    def _forget_exit(self):
        atexit.unregister(self._at_exit)
        finalizer, self._finalizer = self._finalizer, None
        if finalizer is not None:
            finalizer.cancel()

    def _flush(self):
        if self.recorder is not None:
            self.guard.run("flush", self.recorder.flush)

    def _write_end(self, reason):
        head = wire.END_HEAD.pack(self._last_step(), wire.END_REASONS.index(reason))
        for _ in range(50):
            if self.write(wire.KIND_END, head):
                return
            time.sleep(0.001)  # the training thread is in the middle of a record

    def _shut_door(self):
        door, self.door = self.door, None
        if door is not None:
            os.close(door)

    def release(self):
        """The control thread has gone: unmap the ring, unless the training thread never leaves it. The daemon keeps its own."""
        self._shut_door()
        for _ in range(50):
            if self._writer.setdefault("writer", self) is self:
                self.ring.close()
                return
            time.sleep(0.001)

    def _at_exit(self):
        error = sys.exc_info()[1] or getattr(sys, "last_value", None)  # in flight, or that of the traceback just printed
        exhausted = exhaustion.text_of(error)
        if exhausted is not None:
            self.guard.run("end", self.event, "out_of_memory", self._last_step(), 1.0, exhausted)
        failed = error is not None and not isinstance(error, SystemExit) and not hasattr(sys, "ps1")
        self.guard.run("end", self.end, "exception" if failed else "exit")

    # --------------------------------------------------------------------------------------------------------- guard
    def _on_fault(self, _probe, _error):
        self.drop("probe_fault")

    def _on_probe_off(self, probe, faults, text):
        notices.say_once("%s is switched off after %d faults (%s)" % (probe, faults, text))
        self.event("probe_disabled", self._last_step(), faults, "%s: %s" % (probe, text))

    def _last_step(self):
        return _LAST_STEP.unpack_from(self._last_step_head)[0] if self._last_step_head is not None else 0


def _at_worker_exit(function):
    """Have `function` called at the end of a multiprocessing child, which leaves by os._exit; the handle, or None elsewhere."""
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None:
        return None
    from multiprocessing import util

    return util.Finalize(None, function, exitpriority=0)


_current = None


def current():
    """The process's one session, made when first asked for. After its end it stays, and does nothing."""
    global _current  # noqa: PLW0603 - a process has one
    if _current is None:
        _current = Session()
    return _current


def renewed():
    """A new session in place of one that was detached; otherwise the current one. For an explicit start only."""
    global _current  # noqa: PLW0603
    if _current is not None and _current.over and _current.renewable:
        _current = Session()
    return current()
