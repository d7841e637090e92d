"""Mixed precision: the share of the forward time spent under torch.autocast, and the type it computes in."""

import time

from .. import wire

_now = time.perf_counter_ns


class AutocastProbe:
    """Watches `with torch.autocast(...)` on the class, so that its subclasses and its use as a decorator are seen too."""

    name = "autocast"

    def install(self, recorder):
        self._recorder = recorder
        self._open = []  # dtype name of each open region, None where it is disabled
        self._dtype = 0  # index into wire.AUTOCAST_DTYPES of the last one that was enabled in this step
        from torch.amp.autocast_mode import autocast

        guard, ledger = recorder.session.guard, recorder.session.ledger
        entered, left = guard.wrap(self.name, self._entered), guard.wrap(self.name, self._left)
        ledger.wrap(autocast, "__enter__", lambda original: _entering(original, entered))
        ledger.wrap(autocast, "__exit__", lambda original: _leaving(original, left))

    def after(self, part):
        part.set("autocast_dtype", float(self._dtype))
        self._dtype = self._index() if self._open else 0

    def _entered(self, region):
        if self._recorder.on_training_thread():
            enabled = getattr(region, "_enabled", False)
            self._open.append(str(getattr(region, "fast_dtype", "")).rpartition(".")[2] if enabled else None)
            self._changed()

    def _left(self):
        if self._recorder.on_training_thread() and self._open:
            self._open.pop()
            self._changed()

    def _changed(self):
        index = self._index()
        if index:
            self._dtype = index
        self._recorder.clock.set_autocast(bool(index), _now())

    def _index(self):
        name = self._open[-1] if self._open else None
        return wire.AUTOCAST_DTYPES.index(name) if name in wire.AUTOCAST_DTYPES else 0


def _entering(original, entered):
    def entering(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        entered(self)
        return result

    return entering


def _leaving(original, left):
    def leaving(self, *args, **kwargs):
        left()
        return original(self, *args, **kwargs)

    return leaving
