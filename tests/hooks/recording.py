"""A recording session for tests: the real ledger, guard and ring, without a daemon; what was written is decoded again."""

from __future__ import annotations

import contextlib
import struct
import threading
import weakref

import torch
from gpuwatch_hooks import settings, wire
from gpuwatch_hooks.guard import Guard
from gpuwatch_hooks.patching import Ledger
from gpuwatch_hooks.recorder import Recorder
from gpuwatch_hooks.ring import RingWriter

from gpuwatch.state import records
from gpuwatch.state.layers import buckets, statistics

torch.set_num_threads(1)  # these models are tiny, and OpenMP's waiting threads would starve the tests beside them


def _close(ring):
    with contextlib.suppress(BufferError):  # a fault that a test provoked may hold a view in its traceback
        ring.close()


class RecordingSession:
    """Has what the recorder asks of a session. `budget` 1.0: nothing is thinned, so each step has everything."""

    def __init__(self, *, every=1, histograms=True, budget=1.0, slots=1024):
        self.settings = settings.DEFAULTS._replace(every=every, histograms=histograms, overhead_budget=budget)
        self.ledger = Ledger()
        self.faults = []
        self.guard = Guard(lambda probe, error: self.faults.append((probe, error)), lambda *_: None)
        self.ring = RingWriter(slots, 16384)
        self._one_writer = threading.Lock()
        # Hundreds of tests in one process: rings that nobody closes filled the machine's memory.
        self._free = weakref.finalize(self, _close, self.ring)
        self._held = None  # the slots of the ring after it was closed
        self.tables = {}  # table -> (version, names, numels)
        self.told = []
        self.dropped = []
        self.device = "cpu"
        self.armed = False
        self.over = False
        self.recorder = Recorder(self)

    def arm(self):
        self.armed = True
        return True

    def write(self, kind, head, body=b""):
        with self._one_writer:  # the session's gate drops the second; here nothing may be missing
            return self.ring.write(kind, head, body)

    def event(self, code, step, value, text):
        return self.write(wire.KIND_EVENT, wire.EVENT_HEAD.pack(step, wire.EVENT_CODES.index(code), value), text.encode())

    def names(self, table, version, first, names, numels=()):
        assert first == 0
        self.tables[table] = (version, list(names), list(numels))

    def meta(self, facts):
        self.told.append(facts)

    def errand(self, function):
        function()  # the control thread's, when there is one

    def drop(self, reason):
        self.dropped.append(reason)

    def records(self):
        """Everything that was written, decoded by the daemon's own decoder, oldest first."""
        found = []
        for number, slot in enumerate(self._held if self._held is not None else self._slots(), 1):
            assert struct.unpack_from("<Q", slot)[0] == number
            when, size, crc, kind, _, _ = wire.SLOT_META.unpack_from(slot, 8)
            payload = slot[wire.SLOT_HEADER_BYTES : wire.SLOT_HEADER_BYTES + size]
            assert wire.slot_crc(number, when, kind, payload) == crc
            found.append(records.decode(kind, payload, when))
        return found

    def _slots(self):
        ring = self.ring
        assert ring.sequence <= ring.slot_count, "the test wrote more than the ring holds"
        first = wire.RING_HEADER_BYTES
        return [
            bytes(ring._view[at : at + ring.slot_bytes])
            for at in range(first, first + ring.sequence * ring.slot_bytes, ring.slot_bytes)
        ]

    def close(self):
        """Give the ring's memory back; what it held can still be read."""
        if self._held is None:
            self._held = self._slots()
            self._free()  # once: a descriptor closed twice may be somebody else's by then

    def parts(self):
        return [record for record in self.records() if isinstance(record, records.StepPart)]

    def events(self, code=None):
        return [r for r in self.records() if isinstance(r, records.Event) and code in (None, r.code)]

    def rows(self, family="gradient", step=None):
        """[{name: {column: value}}] of one family, one dict for each step and optimizer that has a table."""
        return self._tables(records.TensorRows, family, step, lambda record: statistics([record], family))

    def histograms(self, family="gradient", step=None):
        """[{name: 64 counts}], likewise."""
        return self._tables(records.HistogramRows, family, step, buckets)

    def _tables(self, kind, family, step, unpack):
        names, found = self.tables["tensor"][1], {}
        for record in self.records():
            if isinstance(record, kind) and record.family == family and step in (None, record.step):
                found.setdefault((record.step, record.optimizer), {}).update({names[i]: row for i, row in unpack(record)})
        return list(found.values())


@contextlib.contextmanager
def recording(*, strict=True, **options):
    """Hooks installed for the time of the block; with `strict`, a fault of any probe fails the test."""
    session = RecordingSession(**options)
    session.recorder.install()
    try:
        yield session
        session.recorder.flush()
    finally:
        session.recorder.remove()
        session.ledger.remove()
        session.close()
    if strict and session.faults:
        raise session.faults[0][1]
