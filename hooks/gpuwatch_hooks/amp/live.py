"""The AMP probe: in the running job, blocks of steps with autocast and without, timed by the device, then a verdict.

A job under autocast: its probed steps run in float32 and are applied, the safe direction, or dropped when that was asked for.
A job in float32: its probed steps run under autocast on its own batches and are dropped: the optimizer sees no gradient, and
random numbers, BatchNorm's statistics, the loss scaler and schedulers are put back, so that the training goes on as if these
batches had not been there. Before the first switch the model's last forward pass is tried in the other precision, without
gradients: a kernel that knows only half precision must not fail in the user's own call.
"""

import json
import math
import os
import sys

from .. import keepsake, notices, schedulers, wire
from .compare import Line, table
from .plan import Plan
from .stopwatch import Stopwatch
from .switch import Switch

VARIABLE = "GPUWATCH_AMP_PROBE"
ROUNDS, BLOCK_STEPS = 6, 5
#: With `gpuwatch run --amp-probe` it begins here: by then the first steps' compilations and autotuning are over.
FIRST_STEP = 50
#: Ordinary steps that are looked at first.
LOOK_STEPS = 2
#: float32 activations take twice the memory of half ones at most; what is left must still hold this much more.
MEMORY_MARGIN = 1.1


def wanted(environ=None):
    """The probe that `gpuwatch run --amp-probe` asks for, as a list of one, or none."""
    text = (os.environ if environ is None else environ).get(VARIABLE, "")
    try:
        request = json.loads(text) if text else None
        return [LiveProbe(request)] if isinstance(request, dict) else []
    except ValueError:
        notices.say_once("%s=%s is not usable; no AMP probe" % (VARIABLE, text))
        return []


def begin(recorder, request):
    """Let a running job be probed, unless it is already."""
    if recorder is not None and not any(isinstance(probe, LiveProbe) for probe in recorder.probes):
        recorder.admit(LiveProbe(request))


class RefusedError(Exception):
    """The job cannot be probed without harm; the reason is a clause."""


def _whole(request, name, default, least, largest):
    value = request.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and least <= value <= largest else default


class LiveProbe:
    """A probe for some dozens of steps. `request`: rounds, block_steps, dtype (index into wire.AUTOCAST_DTYPES, 0: choose),
    drop, first_step (an iteration, the same on every rank), seed, ticket (given back with the result)."""

    name = "amp_probe"

    def __init__(self, request):
        self._rounds = _whole(request, "rounds", ROUNDS, 2, 100)
        self._block_steps = _whole(request, "block_steps", BLOCK_STEPS, 1, 1000)
        self._dtype = wire.AUTOCAST_DTYPES[_whole(request, "dtype", 0, 0, 2)]
        self._drop = bool(request.get("drop"))
        self._first_step = _whole(request, "first_step", FIRST_STEP, 0, 1 << 48)
        self._seed = _whole(request, "seed", 0, 0, 1 << 48)
        self._ticket = _whole(request, "ticket", 0, 0, 1 << 62)
        self._switch = self._plan = self._watch = self._kept = None
        self._looked = 0
        self._index = -1  # of the plan's step that is being taken
        self._dropping = False
        self._holding = False
        self._stashed = []  # (parameter, gradient) while an optimizer takes a step without
        self._dropped = 0
        self._entries = {}

    def install(self, recorder):
        self._recorder = recorder
        schedulers.hold(recorder.session.ledger, lambda: self._holding)

    def remove(self):
        """Everything of the job's is as the job has it."""
        self._give_gradients_back()
        self._holding = self._dropping = False
        switch, self._switch = self._switch, None
        if switch is not None:
            switch.remove()

    def before(self, part):
        """The gradients of a dropped step are hidden from its optimizer."""
        self._holding = self._dropping
        if self._dropping:
            self._stashed += [(p, p.grad) for p in part.entry.parameters if p.grad is not None]
            for parameter, _ in self._stashed:
                parameter.grad = None

    def after(self, part):
        """One optimizer has stepped; the probe moves on when the iteration is complete."""
        self._give_gradients_back()
        self._entries[part.entry.index] = part.entry
        if not part.complete:
            return
        try:
            self._advance(part)
        except RefusedError as reason:
            self._fail(part, str(reason))
        except Exception as error:
            self._fail(part, "%s: %s" % (type(error).__name__, str(error).partition("\n")[0][:200]))

    # -------------------------------------------------------------------------------------------------- one after another
    def _advance(self, part):
        if self._plan is None:
            if part.step + LOOK_STEPS + 1 >= self._first_step:
                self._look(part)
            return
        if self._index >= 0:
            self._watch.lap(self._index)
            self._dropped += self._dropping
        self._index += 1
        block = self._plan.block_of(self._index)
        if self._index % self._plan.block_steps == 0:
            self._change(block)
        for index, seconds, peak in self._watch.laps():
            self._plan.add(index, seconds, peak)
        # One iteration more: a scheduler may still take the step that belongs to the last dropped one.
        if block is None and self._index > self._plan.steps and self._watch.is_empty():
            self._tell(part)

    def _change(self, block):
        """A block ends and another one begins, or none does."""
        if self._kept is not None:
            self._kept.restore()
            self._kept = None
        self._dropping = False
        if block is None:
            self._switch.set(None)
            return
        variant = self._plan.variants[self._plan.order[block]]
        foreign = variant != self._own
        self._switch.set(variant if foreign else None)
        if foreign and (self._drop or self._own == "float32"):
            self._dropping = True
            self._kept = keepsake.Keepsake(self._modules(), self._optimizers(), self._scalers(), weights=False)
        if self._index == 0:
            self._watch.lap(None)
        self._watch.forget_peak()

    def _look(self, part):
        """Ordinary steps first: how does this job call its model, and can it be probed?"""
        if self._switch is None:
            modules = self._modules()
            if not modules:
                raise RefusedError("no module was found that owns the optimizer's parameters")
            if part.closure_calls:
                raise RefusedError("the optimizer computes its gradients in a closure, several times a step")
            device = part.entry.parameters[0].device
            self._device = device
            self._switch = Switch(modules, device.type, training_only=True)
            self._switch.keep_call = True
            return
        self._looked += 1
        if self._looked < LOOK_STEPS or part.step + 1 < self._first_step:
            return
        call, self._switch.last_call, self._switch.keep_call = self._switch.last_call, None, False
        if call is None:
            raise RefusedError("the loop does not call the model's forward pass through the module that was found")
        used = wire.AUTOCAST_DTYPES[int(part.get("autocast_dtype") or 0)]
        self._own = used if used in ("float16", "bfloat16") else "float32"
        half = self._own if self._own != "float32" else self._chosen()
        if self._own == "float32" or self._drop:
            self._refuse_strange_optimizers()
        if self._own != "float32":
            self._refuse_too_large()
        self._try(call, "float32" if self._own != "float32" else half)
        self._plan = Plan(["float32", half], self._rounds, self._block_steps, self._seed)
        self._watch = Stopwatch(self._device)
        self._advance(part)

    # -------------------------------------------------------------------------------------------------------- refusals
    def _chosen(self):
        torch = sys.modules["torch"]
        if self._dtype in ("float16", "bfloat16"):
            return self._dtype
        return "bfloat16" if self._device.type != "cuda" or torch.cuda.is_bf16_supported() else "float16"

    def _refuse_strange_optimizers(self):
        for optimizer in self._optimizers():
            if not type(optimizer).__module__.startswith("torch.optim"):
                text = "%s is none of torch's optimizers, and may not stand a step without gradients"
                raise RefusedError(text % type(optimizer).__name__)

    def _refuse_too_large(self):
        """A float32 step may take twice what the half one took beyond weights and states; it must fit for certain."""
        if self._device.type != "cuda":
            return
        torch = sys.modules["torch"]
        static = keepsake.bytes_of(self._modules(), self._optimizers())
        peak = torch.cuda.max_memory_allocated(self._device)
        free, _ = torch.cuda.mem_get_info(self._device)
        ours = torch.cuda.memory_reserved(self._device)
        predicted = MEMORY_MARGIN * (static + 2 * max(0, peak - static))
        if predicted > free + ours:
            text = "a float32 step may take %.1f GiB, and %.1f GiB are there"
            raise RefusedError(text % (predicted / 2**30, (free + ours) / 2**30))

    def _try(self, call, variant):
        """The last forward pass once more, in the other precision, with nothing left of it."""
        torch = sys.modules["torch"]
        module, args, kwargs = call
        kept = keepsake.Keepsake(self._modules(), self._optimizers(), (), weights=False)
        self._switch.set(variant)
        try:
            with torch.no_grad():
                module(*args, **kwargs)
        except Exception as error:
            text = "its forward pass fails in %s (%s: %s)"
            raise RefusedError(text % (variant, type(error).__name__, str(error).partition("\n")[0][:160])) from None
        finally:
            self._switch.set(None)
            kept.restore()

    # --------------------------------------------------------------------------------------------------------- results
    def _tell(self, part):
        plan, session = self._plan, self._recorder.session
        ratio, low, high = plan.speedup(1)
        base_peak, peak = plan.peak_bytes(0), plan.peak_bytes(1)
        facts = {
            "amp_variant": plan.variants[1],
            "amp_speedup_ratio": ratio,
            "amp_speedup_low": low,
            "amp_speedup_high": high,
            "amp_steps_per_second": plan.steps_per_second(1),
            "amp_base_steps_per_second": plan.steps_per_second(0),
            "amp_memory_saving_ratio": 1.0 - peak / base_peak,
            "amp_peak_bytes": peak,
            "amp_base_peak_bytes": base_peak,
            "amp_probe_dropped_batches": self._dropped,
            "amp_probe_failed": "",
            "amp_probe_ticket": self._ticket,
        }
        session.meta({name: value for name, value in facts.items() if not isinstance(value, float) or math.isfinite(value)})
        lines = [
            Line(plan.variants[0], plan.steps_per_second(0), base_peak, 1.0, 1.0, 1.0, 0.0),
            Line(plan.variants[1], plan.steps_per_second(1), peak, ratio, low, high, 1.0 - peak / base_peak),
        ]
        text = table(lines).encode()
        session.media("text", "amp", part.step, (len(text),), text)
        self._leave()

    def _fail(self, part, reason):
        session = self._recorder.session
        session.meta({"amp_probe_failed": reason, "amp_probe_ticket": self._ticket})
        session.event("notice", part.step, 0.0, "no AMP probe: %s" % reason)
        if self._kept is not None:
            self._kept.restore()
            self._kept = None
        self._leave()

    def _leave(self):
        self.remove()
        self._recorder.dismiss(self)

    # ---------------------------------------------------------------------------------------------------------- the job
    def _give_gradients_back(self):
        stashed, self._stashed = self._stashed, []
        for parameter, gradient in stashed:
            if parameter.grad is None:
                parameter.grad = gradient

    def _modules(self):
        found = {}
        for entry in self._entries.values():
            for root in entry.roots:
                module = root()
                if module is not None:
                    found[id(module)] = module
        return list(found.values())

    def _optimizers(self):
        found = [entry.optimizer() for entry in self._entries.values() if entry.optimizer is not None]
        return [optimizer for optimizer in found if optimizer is not None]

    def _scalers(self):
        scaler = self._recorder.by_name["loss"].scaler()
        return [] if scaler is None else [scaler]
