"""The hooks without a daemon, for benches that must run from a plain checkout: the real ledger, guard, ring and recorder."""

from gpuwatch_hooks import settings, wire
from gpuwatch_hooks.guard import Guard
from gpuwatch_hooks.patching import Ledger
from gpuwatch_hooks.recorder import Recorder
from gpuwatch_hooks.ring import RingWriter


class HookedSession:
    """What the recorder asks of a session. Errands are run at once; what is told is kept."""

    def __init__(self, budget):
        self.settings = settings.DEFAULTS._replace(overhead_budget=budget)
        self.ledger = Ledger()
        self.faults, self.told = [], []
        self.guard = Guard(lambda probe, error: self.faults.append((probe, error)), lambda *_: None)
        self.ring = RingWriter(wire.DEFAULT_SLOTS)
        self.device = "cpu"
        self.armed = self.over = False
        self.recorder = Recorder(self)

    def adjust_every(self, every):
        self.settings = self.settings._replace(every=every)

    def arm(self):
        self.armed = True
        return True

    def write(self, kind, head, body=b""):
        return self.ring.write(kind, head, body)

    def event(self, _code, _step, _value, text):
        self.told.append({"event": text})

    def names(self, _table, _version, _first, _names, _numels=()):
        """Nobody reads them."""

    def drop(self, reason):
        self.told.append({"dropped": reason})

    def meta(self, facts):
        self.told.append(facts)

    def errand(self, function):
        function()

    def close(self):
        self.ring.close()
