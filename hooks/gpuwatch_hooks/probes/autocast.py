"""Mixed precision: the share of the forward time spent under torch.autocast, and the type it computes in."""

import time

from .. import wire

_now = time.perf_counter_ns


class AutocastProbe:
    """Watches `with torch.autocast(...)` on the class, so that its subclasses and its use as a decorator are seen too."""

    name = "autocast"

    def install(self, recorder):
        self._recorder = recorder
        self._told, self._tellings = None, 0
        self._open = []  # dtype name of each open region, None where it is disabled
        self._dtype = 0  # index into wire.AUTOCAST_DTYPES of the last one that was enabled in this step
        from torch.amp.autocast_mode import autocast

        guard, ledger = recorder.session.guard, recorder.session.ledger
        entered, left = guard.wrap(self.name, self._entered), guard.wrap(self.name, self._left)
        ledger.wrap(autocast, "__enter__", lambda original: _entering(original, entered))
        ledger.wrap(autocast, "__exit__", lambda original: _leaving(original, left))

    def after(self, part):
        part.set("autocast_dtype", float(self._dtype))
        precision = _precision(self._dtype, part.entry.parameters)
        if precision != self._told and self._tellings < 8:  # a loop that alternates would otherwise tell it for ever
            self._told = precision
            self._tellings += 1
            self._recorder.session.meta({"precision": precision})
        self._dtype = self._index()

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


_SHORT = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}


def _precision(autocast_dtype, parameters):
    """What the run computes in: autocast's type (`bf16`), or that of the weights where there is no autocast (`bf16-pure`)."""
    if autocast_dtype:
        return _SHORT[wire.AUTOCAST_DTYPES[autocast_dtype]]
    name = str(parameters[0].dtype).rpartition(".")[2] if parameters else "float32"
    short = _SHORT.get(name, name)
    return short + "-pure" if short in ("fp16", "bf16") else short


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
