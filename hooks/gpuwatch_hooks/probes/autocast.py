"""Mixed precision: the share of the forward time spent under torch.autocast, and the type it computes in."""

import time

from .. import wire

_now = time.perf_counter_ns


class AutocastProbe:
    """Watches `with torch.autocast(...)` on the class, so that its subclasses and its use as a decorator are seen too."""

    name = "autocast"

    def install(self, recorder):
        self._recorder = recorder
        self.probed = False  # the AMP probe computes this step in another precision than the job's own
        self._told, self._tellings = None, 0
        self._computed = None  # (index of autocast's type, that of the weights) of the last step
        self._open = []  # dtype name of each open region, None where it is disabled
        self._dtype = 0  # index into wire.AUTOCAST_DTYPES of the last one that was enabled in this step
        from torch.amp.autocast_mode import autocast

        ledger = recorder.session.ledger
        entered, left = recorder.hook(self.name, self._entered), recorder.hook(self.name, self._left)
        ledger.wrap(autocast, "__enter__", lambda original: _entering(original, entered))
        ledger.wrap(autocast, "__exit__", lambda original: _leaving(original, left, self._open))

    def after(self, part):
        part.fields["autocast_dtype"] = float(self._dtype)
        parameters = part.entry.parameters
        computed = (self._dtype, parameters[0].dtype if parameters else None)
        if computed != self._computed and not self.probed:
            self._computed = computed
            self._tell(_precision(*computed))
        self._dtype = self._index() if self._open else 0

    def _tell(self, precision):
        if precision != self._told and self._tellings < 8:  # a loop that alternates would otherwise tell it for ever
            self._told = precision
            self._tellings += 1
            self._recorder.session.meta({"precision": precision})

    def _entered(self, region):
        enabled = getattr(region, "_enabled", False)
        if not enabled and not self._open:
            return  # one that is switched off changes nothing by itself
        self._open.append(str(getattr(region, "fast_dtype", "")).rpartition(".")[2] if enabled else None)
        self._changed()

    def _left(self):
        if self._open:
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


def _leaving(original, left, regions):
    def leaving(*args, **kwargs):
        if regions:
            left()
        return original(*args, **kwargs)

    return leaving


_SHORT = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}


def _precision(autocast_dtype, dtype):
    """What the run computes in: autocast's type (`bf16`), or that of the weights where there is no autocast (`bf16-pure`)."""
    if autocast_dtype:
        return _SHORT[wire.AUTOCAST_DTYPES[autocast_dtype]]
    name = str(dtype).rpartition(".")[2] if dtype is not None else "float32"
    short = _SHORT.get(name, name)
    return short + "-pure" if short in ("fp16", "bf16") else short
