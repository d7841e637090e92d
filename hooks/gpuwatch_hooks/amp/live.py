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
import weakref

from .. import identity, keepsake, notices, schedulers, wire
from . import agreement, dry_run
from .compare import Line, table
from .dropping import Dropping
from .inside import Calls, candidates, without_those_inside
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
    """Let a running job be probed. The answer to a second question while the first is open is that it is open."""
    if recorder is None:
        return
    if any(isinstance(probe, LiveProbe) for probe in recorder.probes):
        ticket = _whole(request, "ticket", 0, 0, 1 << 62)
        # A fact of its own: the result of the one that is open would overwrite it before anybody has read it.
        recorder.session.meta({"amp_probe_busy_ticket": ticket})
        return
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
        self._switch = self._plan = self._watch = self._dropping = self._release = None
        self._looked = 0
        self._inside = []  # modules that are watched because the ones that were found are not called
        self._not_watched = None  # why not
        self._observed = 0  # iterations before the plan
        self._scheduled = weakref.WeakKeyDictionary()  # scheduler -> the last of them that it took a step in, and how many
        self._index = -1  # of the plan's step that is being taken
        self._holding = False
        self._trouble = None
        self._entries = {}

    def install(self, recorder):
        self._recorder = recorder
        self._release = schedulers.hold(recorder.session.ledger, self._is_held)

    def remove(self):
        """Everything of the job's is as the job has it, from the end of a step that is under way. From any thread."""
        self._holding = False
        self._recorder.by_name["autocast"].probed = False
        release, self._release = self._release, None
        if release is not None:
            release()
        if self._dropping is not None:
            self._dropping.leave()
        if self._switch is not None:
            self._switch.remove()

    def before(self, part):
        """A scheduler's step behind a dropped step belongs to that; and that such a step changes nothing is no finding."""
        self._holding = self._drops()
        if self._holding:
            part.updates = None

    def after(self, part):
        """One optimizer has stepped; the probe moves on when the iteration is complete."""
        self._holding = self._drops()
        self._entries[part.entry.index] = part.entry
        if not part.complete:
            return
        try:
            self._advance(part)
        except RefusedError as reason:
            self._fail(part, str(reason))
        except Exception as error:
            self._fail(part, "%s: %s" % (type(error).__name__, str(error).partition("\n")[0][:200]))

    def _drops(self):
        return self._dropping is not None and self._dropping.on

    def _is_held(self, scheduler):
        """Those that step about once an iteration. One that steps once an epoch does so for dropped batches as for others."""
        if self._plan is None:
            last, count = self._scheduled.get(scheduler, (None, 0))
            if last != self._observed:
                self._scheduled[scheduler] = (self._observed, count + 1)
            return False
        return self._holding and 2 * self._scheduled.get(scheduler, (None, 0))[1] >= self._observed

    def _opening(self):
        """A training forward pass begins, inside the user's own call: whatever fails here must not fail there."""
        try:
            return self._dropping is None or self._dropping.opening()
        except Exception as error:
            self._trouble = "%s: %s" % (type(error).__name__, str(error).partition("\n")[0][:200])
            return False

    # -------------------------------------------------------------------------------------------------- one after another
    def _advance(self, part):
        if self._plan is None:
            self._observed += 1
            if part.step + LOOK_STEPS + 1 >= self._first_step:
                self._look(part)
            return
        if 0 <= self._index < self._plan.steps:  # a later one would keep the list from ever being empty
            self._watch.lap(self._index)
        if self._dropping is not None:
            self._dropping.ended()
        if self._trouble is not None:
            raise RefusedError(self._trouble)
        self._index += 1
        block = self._plan.block_of(self._index)
        if self._index % self._plan.block_steps == 0:
            self._change(block)
        own = self._plan.variants.index(self._own)
        for lap in self._watch.laps():
            taken = lap.update_seconds if self._plan.variant_of(lap.label) == own else 0.0
            self._plan.add(lap.label, lap.seconds, lap.peak_bytes, taken)
        # One iteration more: a scheduler may still take the step that belongs to the last dropped one.
        if block is None and self._index > self._plan.steps and self._watch.is_empty():
            self._tell(part)
        self._watch.lap(None)  # what was put back here is no part of the next step

    def _change(self, block):
        """A block ends and another one begins, or none does."""
        variant = None if block is None else self._plan.variants[self._plan.order[block]]
        foreign = variant is not None and variant != self._own
        self._switch.set(variant if foreign else None)
        self._recorder.by_name["autocast"].probed = foreign
        if self._dropping is not None:
            self._dropping.on = foreign
        if block is not None:
            self._watch.forget_peak()

    def _look(self, part):
        """Ordinary steps first: how does this job call its model, and can it be probed?"""
        if self._switch is None:
            if part.step >= self._first_step and identity.ranks()[1] > 1:
                raise RefusedError("it heard too late of the step that all ranks were to begin at")
            modules = self._modules()
            if not modules:
                raise RefusedError("no module was found that owns the optimizer's parameters")
            if (part.closure_calls or 0) > 1 or any(type(one).__name__ == "LBFGS" for one in self._optimizers()):
                raise RefusedError("the optimizer computes its gradients in a closure, several times a step")
            device = part.entry.parameters[0].device
            self._device = device
            self._put_on(modules)
            self._switch.calls = Calls()
            return
        self._looked += 1
        if self._looked == 1:
            self._look_inside()
        if self._looked < LOOK_STEPS or part.step + 1 < self._first_step:
            return
        calls, self._switch.calls = self._switch.calls, None
        called = list(calls.of.values())
        if self._inside and called:
            modules = [call[0] for call in called]
            self._put_on(without_those_inside(self._inside, modules), modules)
            self._inside = []
        used = wire.AUTOCAST_DTYPES[int(part.get("autocast_dtype") or 0)]
        self._own = used if used in ("float16", "bfloat16") else "float32"
        half = self._own if self._own != "float32" else self._chosen()
        drops = self._drop or self._own == "float32"
        reason = agreement.reason_against(self._ticket, self._reason_against(calls, half, drops))
        if reason is not None:
            raise RefusedError(reason)
        self._plan = Plan(["float32", half], self._rounds, self._block_steps, self._seed)
        self._watch = Stopwatch(self._device)
        if drops:
            self._dropping = Dropping(self._modules(), self._optimizers(), self._scalers(), self._watch)
        self._advance(part)

    def _look_inside(self):
        """A whole step is over in which none of these was called: the next one shows which modules inside them are."""
        roots, entered = self._modules(), self._switch.calls.entered
        uncalled = [root for root in roots if id(root) not in entered]
        if uncalled:
            inside, self._not_watched = candidates(uncalled)
            if inside:
                self._inside = [*(root for root in roots if id(root) in entered), *inside]
                calls = self._switch.calls
                self._put_on(self._inside)
                self._switch.calls = calls

    def _put_on(self, modules, switched=None):
        if self._switch is not None:
            self._switch.remove()
        self._switch = Switch(modules, self._device.type, training_only=True, opening=self._opening, switched=switched)

    # -------------------------------------------------------------------------------------------------------- refusals
    def _chosen(self):
        torch = sys.modules["torch"]
        if self._dtype in ("float16", "bfloat16"):
            return self._dtype
        return "bfloat16" if self._device.type != "cuda" or torch.cuda.is_bf16_supported() else "float16"

    def _reason_against(self, calls, half, drops):
        """Why the steps that the plan has in mind would do harm, as a clause, or None."""
        if calls.too_large:
            return "what it gives the modules that it calls one by one is too much to keep for a trial"
        if not calls.of:
            reason = "the loop does not call the model's forward pass through the module that was found, nor a module inside it"
            return self._not_watched or reason
        if drops:
            for optimizer in self._optimizers():
                if not type(optimizer).__module__.startswith("torch.optim"):
                    text = "%s is none of torch's optimizers, and may not stand a step without gradients"
                    return text % type(optimizer).__name__
        foreign = "float32" if self._own != "float32" else half
        too_large = self._too_large() if foreign == "float32" else None
        return too_large or dry_run.reason_against(list(calls.of.values()), self._switch, foreign, self._modules())

    def _too_large(self):
        """A float32 step may take twice what the half one took beyond weights and states; it must fit for certain."""
        if self._device.type != "cuda":
            return None
        torch = sys.modules["torch"]
        static = keepsake.bytes_of(self._modules(), self._optimizers())
        peak = torch.cuda.max_memory_allocated(self._device)
        free, _ = torch.cuda.mem_get_info(self._device)
        ours = torch.cuda.memory_reserved(self._device)
        predicted = MEMORY_MARGIN * (static + 2 * max(0, peak - static))
        if predicted <= free + ours:
            return None
        text = "a float32 step may take %.1f GiB, and %.1f GiB are there"
        return text % (predicted / 2**30, (free + ours) / 2**30)

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
            "amp_probe_dropped_batches": self._dropping.count if self._dropping is not None else 0,
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
        if self._dropping is not None:
            self._dropping.ended()
        self._leave()

    def _leave(self):
        self.remove()
        self._recorder.dismiss(self)

    # ---------------------------------------------------------------------------------------------------------- the job
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
