"""One optimizer step in, one record out: torch's own step hooks open and close a part, the probes fill it, the ring takes it.

    step pre-hook  -> entry of the optimizer -> its open part -> probe.before(part)      gradients as the optimizer gets them
    step post-hook -> probe.after(part) -> number the step -> publish what has arrived from the device

A loss scaler that skips a step calls no hook; its probe then calls `skipped`. Everything here runs on the training thread,
inside the guard, and makes no system call: perf_counter_ns is read from a page that the kernel shares.
"""

import collections
import os
import sys
import threading
import time

from . import in_backward, stepping
from .governor import Governor
from .kernels.selection import Selection
from .meter import Meter
from .part import Part
from .probes import ORDER
from .probes.phases import PhaseClock
from .roster import Roster

#: Parts that may wait for a device; a host that runs further ahead loses the oldest, which is counted.
MAX_WAITING_PARTS = 256
#: An optimizer that has not stepped for so many iterations is no longer expected in each.
EXPECTED_WITHIN = 64
#: After this long without a step of the recorded thread, another one's steps are followed.
SILENCE_NS = 5_000_000_000

_now = time.perf_counter_ns


class Recorder:
    """Owns the probes, the clock, the governor, step numbers and the parts on their way."""

    def __init__(self, session):
        self.session = session
        self.roster = Roster(session)
        self.governor = Governor()
        self.clock = PhaseClock(_now())
        self.meter = Meter()
        self.probes = [make() for make in ORDER]
        if os.environ.get("GPUWATCH_LR_FIND"):  # not imported where nobody asks for it
            from . import lr_range

            self.probes += lr_range.wanted()
        if os.environ.get("GPUWATCH_AMP_PROBE"):
            from .amp import live

            self.probes += live.wanted()
        self.by_name = {probe.name: probe for probe in self.probes}
        self._phases = self.by_name["phases"]
        self.selection = Selection(session)
        self._rebind()
        self.backwards = 0  # outermost backward calls so far
        self.iteration = 0
        self.previous_end = None  # perf_counter_ns when the last part was closed
        self.fetching = False
        self._in_backward = in_backward.InBackward(self)
        self._iteration_closed = False
        self._stepping = None  # the entry whose step runs
        self._waiting = collections.deque()
        self._followed_at = None  # perf_counter_ns when it was moved over to
        self._elsewhere = False  # whether it was said that another one steps too
        self._captured = False

    # ------------------------------------------------------------------------------------------------- installation
    def install(self):
        """Put all probes and the step hooks in. A probe that does not fit this torch is left out, not the rest."""
        from torch.optim import optimizer

        guard, ledger = self.session.guard, self.session.ledger
        self._cuda = sys.modules["torch"].cuda
        for probe in self.probes:
            guard.run(probe.name, probe.install, self)
        before, after = (
            self.hook("recorder", _without_graph(f), elsewhere=True) for f in (self._before_step, self._after_step)
        )
        ledger.hook(optimizer.register_optimizer_step_pre_hook, before)
        ledger.hook(optimizer.register_optimizer_step_post_hook, after)

    def hook(self, probe, function, default=None, elsewhere=False):
        """`function` as a hook of a probe: it never raises, and what it takes of the training thread is counted.

        On other threads it is not called at all, and `default` comes back, unless `elsewhere`.
        """
        return self.session.guard.metered(self.meter, probe, function, default, elsewhere)

    def admit(self, probe):
        """A probe that somebody has asked for while the job runs, the last in their order. From any thread."""
        self.session.guard.run(probe.name, probe.install, self)
        self.probes = [*self.probes, probe]
        self._rebind()

    def dismiss(self, probe):
        """It has done its work."""
        self.probes = [other for other in self.probes if other is not probe]
        self._rebind()

    def _rebind(self):
        self._all_before, self._all_after = self._calls("before"), self._calls("after")
        self._usual_before, self._usual_after = self._calls("before", usual=True), self._calls("after", usual=True)

    def _calls(self, moment, usual=False):
        """Every probe's method for this moment, as one call that keeps the probes' faults apart.

        `usual`: for the steps at which nothing is sampled.
        """
        probes = [probe for probe in self.probes if not (usual and getattr(probe, "sampled", False))]
        found = [(probe.name, getattr(probe, moment, None)) for probe in probes]
        return self.session.guard.together([(name, function) for name, function in found if function is not None])

    def remove(self):
        """Forget what is being measured; the session's ledger takes the hooks out."""
        for probe in self.probes:
            if hasattr(probe, "remove"):
                self.session.guard.run(probe.name, probe.remove)
        for entry in self.roster:
            entry.part = None
        self._waiting.clear()

    def flush(self, patience_seconds=1.0):
        """At the end of the process: wait (only here) until the device has delivered, then publish."""
        deadline = time.monotonic() + patience_seconds
        while self._waiting and time.monotonic() < deadline:
            self._publish()
            if self._waiting:
                time.sleep(0.002)
        for probe in self.probes:
            if hasattr(probe, "at_exit"):
                self.session.guard.run(probe.name, probe.at_exit)
        self.session.guard.run("flush", self._tell_resident)

    def _tell_resident(self):
        """The most memory that this process has held, for `gpuwatch compare`. VmHWM: ru_maxrss begins with the parent's."""
        if not self.session.armed:
            return
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            peak = next((line.split() for line in file if line.startswith("VmHWM:")), None)
        if peak is not None:
            self.session.meta({"peak_resident_bytes": 1024 * int(peak[1])})

    def on_training_thread(self):
        """Whether the caller is the thread that steps optimizers (before the first step: the main thread)."""
        return threading.get_ident() == self.meter.thread

    # -------------------------------------------------------------------------------------------------------- hooks
    def _before_step(self, optimizer, args, kwargs):
        began = _now()
        if self.capturing() or not (self.session.armed or self._arm(optimizer)) or self.session.over:
            return None
        if in_backward.running():
            self._in_backward.before_step(optimizer)
            if not self.meter.since:  # one of autograd's own threads, for which the training thread waits
                self.meter.taken_ns += _now() - began
            return None
        if threading.get_ident() != self.meter.thread and not self._follow(began):
            return None
        if self._stepping is not None and self._is_inner(optimizer):
            return None
        part = self.open_part(optimizer)
        entry = part.entry
        if entry.in_step and stepping.depth() < 2:  # its last step ended in an exception
            entry.in_step = 0
            self.clock.reset(began)
        entry.in_step += 1
        if entry.in_step > 1:
            return None
        self._stepping = entry
        self.clock.enter("other", began)
        replaced = stepping.count_closure(part, self.clock, self.session.guard, args, kwargs)
        if part.due:
            self._all_before(part)
        else:
            self._usual_before(part)
        self.clock.turn("optimizer", _now())
        return replaced

    def _after_step(self, optimizer, _args, _kwargs):
        began = _now()
        if in_backward.running():
            return
        entry = self.roster.find(optimizer)
        if entry is None or not entry.in_step or not self.on_training_thread():
            return
        entry.in_step -= 1
        if entry.in_step:
            return
        self._stepping = None
        if entry.part is None:
            return
        self.clock.turn("other", began)
        self._close(entry.part)

    def _is_inner(self, optimizer):
        """Whether another optimizer's step has called this one's for the same tensors (Lookahead): its record has them."""
        outer = self._stepping
        if outer is self.roster.find(optimizer) or stepping.depth() < 2:
            return False
        own = set(map(id, outer.parameters))
        return any(id(p) in own for group in optimizer.param_groups for p in group["params"])

    def skipped(self, optimizer):
        """A loss scaler did not call `optimizer.step`: its gradients are recorded all the same."""
        began = _now()
        if self.capturing() or not self._arm(optimizer):
            return
        part = self.open_part(optimizer)
        part.set("skipped", 1.0)
        self.session.guard.run("gradients", self.by_name["gradients"].before, part)
        self.close_part(part, began)

    # -------------------------------------------------------------------------------------------------------- parts
    def open_part(self, optimizer):
        """The part that the next step of `optimizer` will fill."""
        return self.open_for(self.roster.entry(optimizer))

    def open_for(self, entry):
        """The open part of an entry."""
        part = entry.part
        if part is None:
            part = entry.part = Part(entry)
            part.due = self.governor.families_due(entry.steps, self.session.settings.every)
        return part

    def backward_ended(self, now):
        """The outermost backward call has ended at perf_counter_ns `now`: optimizers may have stepped inside it."""
        self._in_backward.finish(now)

    def upcoming(self, entry):
        """The iteration that the next step of an entry will belong to."""
        return self.iteration + (1 if self._iteration_closed or entry.iteration == self.iteration else 0)

    def close_part(self, part, began):
        """The optimizer has stepped (or was skipped) at perf_counter_ns `began`: number the step, close and publish it."""
        self.clock.enter("other", began)
        self._close(part)

    def _close(self, part):
        """The same, where the clock has been told already that what follows is no longer the optimizer's time."""
        entry, guard = part.entry, self.session.guard
        entry.part = None
        entry.steps += 1
        self._number(part)
        if part.due:
            self._all_after(part)
        else:
            self._usual_after(part)
        part.ended = _now()
        guard.run("phases", self._phases.close, part)
        self._account(part, self.meter.cut(part.ended))  # publishing counts to the next part
        self.previous_end = part.ended
        part.close()
        self._waiting.append(part)
        self._publish()
        self.clock.leave(_now())

    def _account(self, part, hook_ns):
        """What the hooks themselves have cost since the last part, and whether something is to be thinned."""
        settings, governor, fields = self.session.settings, self.governor, part.fields
        fields["hook_seconds"] = hook_ns * 1e-9
        if self.previous_end is None:
            return
        said = governor.step(part.ended - self.previous_end, hook_ns, settings.overhead_budget, settings.every)
        fields["overhead_ratio"] = governor.overhead_ratio
        fields["thinning_level"] = float(governor.thinning_level)
        if said is not None:
            code = "thinned" if governor.thinned_more else "restored"
            self.session.event(code, part.step, float(governor.thinning_level), said)

    def _number(self, part):
        entry = part.entry
        upcoming = self.upcoming(entry)
        if upcoming > self.iteration:
            self.iteration = upcoming
            self._iteration_closed = False
        entry.iteration = part.step = upcoming
        if self.iteration > 1 and len(self.roster) == 1:
            part.complete = self._iteration_closed = True
        elif self.iteration > 1:
            recent = self.iteration - EXPECTED_WITHIN
            expected = [e for e in self.roster if e.steps and e.iteration > recent and e.alive()]
            part.complete = self._iteration_closed = all(e.iteration == self.iteration for e in expected)

    def _publish(self):
        waiting = self._waiting
        while waiting and waiting[0].ready():
            waiting.popleft().write(self.session, self.session.guard)
        while len(waiting) > MAX_WAITING_PARTS:
            waiting.popleft()
            self.session.drop("not_ready")

    # ------------------------------------------------------------------------------------------------------ details
    def _follow(self, now):
        """Another thread steps than the one that is recorded: move over to it once the other has been silent for long."""
        heard = self.previous_end if self.previous_end is not None else self._followed_at
        if heard is not None and now - heard < SILENCE_NS:
            if not self._elsewhere:
                self._elsewhere = True
                text = "optimizers step in several threads at once: one of them is recorded"
                self.session.event("notice", self.iteration, 0.0, text)
            return False
        self.meter.thread = threading.get_ident()
        self.previous_end = None
        self.clock.reset(now)
        return True

    def _arm(self, optimizer):
        session = self.session
        if session.armed:
            return not session.over
        if not session.over:
            parameters = optimizer.param_groups[0]["params"]
            session.device = str(parameters[0].device) if parameters else "cpu"
        return session.arm()

    def capturing(self):
        """Whether a CUDA graph is being captured: nothing may be read or allocated then, and replays call no hook."""
        cuda = self._cuda
        if not (getattr(cuda, "_initialized", True) and cuda.is_initialized() and cuda.is_current_stream_capturing()):
            return False
        if not self._captured:
            self._captured = True
            text = "a CUDA graph is captured: its replays call no hook, so only steps outside it are recorded"
            self.session.event("graph_capture", self.iteration, 0.0, text)
        return True


def _without_graph(function):
    """`function` with gradients off: those that have a graph themselves (create_graph=True) must not have ours added to it.

    By torch's own switch, since `torch.no_grad` is watched by a probe, and takes three times as long.
    """
    import torch

    enabled, switch = torch.is_grad_enabled, torch._C._set_grad_enabled

    def hook(*args):
        before = enabled()
        switch(False)
        try:
            return function(*args)
        finally:
            switch(before)

    return hook
