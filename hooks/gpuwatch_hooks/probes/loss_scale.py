"""Loss scaling: the scale, back-offs, skipped steps, and what gradients must be multiplied with to be in true units.

GradScaler says nothing of a step that it skips: `optimizer.step` is not called and no hook fires, so its `step` is wrapped.
A fused optimizer is called even then, with gradients that are still scaled, and finds `grad_scale` and `found_inf` as its own
attributes; after an explicit `unscale_`, `grad_scale` is None and the gradients are true. `get_scale()` would wait for the
device: the scale travels with the step's other values.
"""

import time
import weakref

_now = time.perf_counter_ns
#: fp16 rounds magnitudes up to half its smallest subnormal, 2**-24, to zero.
_FLUSHED = 2.0**-25
MARK = "gpuwatch.scaler"


class LossScaleProbe:
    """See the module. Several scalers and optimizers may exist: everything is kept by pair."""

    name = "loss_scale"

    def install(self, recorder):
        self._recorder = recorder
        self._last = weakref.WeakKeyDictionary()  # scaler -> its scale when it was last read
        self._told = weakref.WeakSet()  # scalers whose scale the user has set since
        self.marked = False  # whether any loss was ever scaled
        self._stepping = None  # (optimizer, scaler) while scaler.step runs
        scaler_class = _scaler_class()
        if scaler_class is None:
            return
        self._wrapped = set()
        self._wrap(scaler_class)

    def _wrap(self, scaler_class):
        """Wrap what this class defines itself: ShardedGradScaler, for one, has a `scale` of its own."""
        self._wrapped.add(scaler_class)
        guard, ledger = self._recorder.session.guard, self._recorder.session.ledger
        # on every thread: whose steps are recorded is known at the first one only
        mark, begin, end = (self._recorder.hook(self.name, f, elsewhere=True) for f in (self._mark, self._begin, self._end))
        told = guard.wrap(self.name, self._new_scale)
        if "scale" in vars(scaler_class):
            ledger.wrap(scaler_class, "scale", lambda original: _marking(original, mark))
        if "step" in vars(scaler_class):
            ledger.wrap(scaler_class, "step", lambda original: _stepped(original, begin, end))
        if "update" in vars(scaler_class):
            ledger.wrap(scaler_class, "update", lambda original: _updated(original, told))

    # -------------------------------------------------------------------------------------------- asked by others
    def to_true_units(self, entry):
        """What the entry's gradients must be multiplied with now: a 0-d float64 tensor, or None when they are true already."""
        if self._unused():
            return None
        optimizer = entry.optimizer() if entry.optimizer is not None else None
        if optimizer is not None and self._stepping is not None and self._stepping[0] is optimizer:
            scale = getattr(optimizer, "grad_scale", None)
        else:
            scale = self._pending_scale(optimizer)
        return None if scale is None else scale.detach().double().reciprocal()

    def flush_threshold(self, entry):
        """True magnitudes at or below this are lost to fp16 at the present scale: a 0-d float64 tensor, or None unscaled."""
        scaler = None if self._unused() else self._scaler_in_use(entry)
        if scaler is None or scaler._scale is None:
            return None
        return _FLUSHED / scaler._scale.detach().double()

    def still_scaled(self, entry):
        """Whether the entry's gradients carry the loss scale at this moment."""
        if self._unused():
            return False
        return self._pending_scale(entry.optimizer() if entry.optimizer is not None else None) is not None

    def _unused(self):
        """Whether no loss was ever scaled, and no scaler steps now: what most loops are."""
        return not self.marked and self._stepping is None

    # ----------------------------------------------------------------------------------------------------- probing
    def after(self, part):
        """The scale of this step and whether its update was skipped."""
        if self._unused():
            return
        scaler = self._scaler_in_use(part.entry)
        if scaler is None or scaler._scale is None:
            return
        part.read([scaler._scale.detach()], lambda values: self._take_scale(part, scaler, values[0]))
        optimizer = part.entry.optimizer()
        found = getattr(optimizer, "found_inf", None)
        if part.get("skipped") is None:
            part.set("skipped", 0.0)
            if found is not None:
                part.read([found.detach()], lambda values: part.set("skipped", 1.0 if values[0] else 0.0))

    def _take_scale(self, part, scaler, scale):
        part.set("loss_scale", scale)
        before = self._last.get(scaler)
        dropped = before is not None and scale < before and scaler not in self._told
        self._told.discard(scaler)
        self._last[scaler] = scale
        part.set("loss_scale_backoffs", 1.0 if dropped else 0.0)

    def _scaler_in_use(self, entry):
        """The scaler of the step that is open: the one stepping now, or the one that scaled the losses behind it."""
        optimizer = entry.optimizer() if entry.optimizer is not None else None
        if optimizer is None:
            return None
        if self._stepping is not None and self._stepping[0] is optimizer:
            return self._stepping[1]
        return self._recorder.by_name["loss"].scaler()

    def _pending_scale(self, optimizer):
        scaler = self._recorder.by_name["loss"].scaler()
        if scaler is None or scaler._scale is None:
            return None
        state = scaler._per_optimizer_states.get(id(optimizer)) if optimizer is not None else None
        stage = getattr(state["stage"], "name", "READY") if state else "READY"
        return scaler._scale if stage == "READY" else None

    # ---------------------------------------------------------------------------------------------------- wrappers
    def _mark(self, scaler, scaled):
        """Remember on the graph itself that this loss is scaled: on its node, so that nothing is kept alive."""
        if not scaler._enabled:
            return
        self.marked = True
        for tensor in (scaled,) if hasattr(scaled, "grad_fn") else tuple(scaled):
            if getattr(tensor, "grad_fn", None) is not None:
                tensor.grad_fn.metadata[MARK] = weakref.ref(scaler)

    def _begin(self, scaler, optimizer):
        for kind in type(scaler).__mro__:  # a subclass that was imported after the hooks came
            if kind not in self._wrapped and hasattr(kind, "unscale_"):
                self._wrap(kind)
        if not getattr(scaler, "_enabled", False) or self._stepping is not None:
            return None  # off, or the call of a subclass to its base
        entry = self._recorder.roster.find(optimizer)
        self._stepping = (optimizer, scaler)
        self._recorder.clock.enter("optimizer", _now())
        return entry.steps if entry is not None else 0

    def _end(self, optimizer, steps_before, completed):
        recorder = self._recorder
        recorder.clock.leave(_now())
        try:
            entry = recorder.roster.find(optimizer)
            if completed and (entry.steps if entry is not None else 0) == steps_before:
                recorder.skipped(optimizer)
        finally:
            self._stepping = None

    def _new_scale(self, scaler):
        self._told.add(scaler)


def _scaler_class():
    """torch.amp's GradScaler, or before torch 2.3 the one of torch.cuda.amp."""
    import torch

    return getattr(torch.amp, "GradScaler", None) or torch.cuda.amp.grad_scaler.GradScaler


def _marking(original, mark):
    def scale(self, *args, **kwargs):
        scaled = original(self, *args, **kwargs)
        mark(self, scaled)
        return scaled

    return scale


def _stepped(original, begin, end):
    def step(self, optimizer, *args, **kwargs):
        token = begin(self, optimizer)
        if token is None:
            return original(self, optimizer, *args, **kwargs)
        completed = False
        try:
            result = original(self, optimizer, *args, **kwargs)
            completed = True
            return result
        finally:
            end(optimizer, token, completed)

    return step


def _updated(original, told):
    def update(self, new_scale=None):
        result = original(self, new_scale)
        if new_scale is not None:
            told(self)
        return result

    return update
