"""`gpuwatch lr-find`: a learning-rate range test in the user's own loop, which knows nothing of it.

At each optimizer step the rates of all parameter groups are set, their ratios kept; schedulers are held (lr_schedules.py);
the loss is what the loss probe records. At the end the process leaves at once, without atexit or finally: whatever the job
would still have saved is a model that the test has wrecked. With `continue` everything is put back as it was after the first
step, which is an ordinary one, and the training goes on as if the batches of the test had not been there.
"""

import json
import math
import os
import sys

from . import identity, keepsake, lr_curve, lr_schedules, notices, patching

VARIABLE = "GPUWATCH_LR_FIND"


def wanted(environ=None):
    """The probe that the environment asks for (GPUWATCH_LR_FIND, JSON with steps, min, max, continue), as a list of one."""
    text = (os.environ if environ is None else environ).get(VARIABLE)
    if not text:
        return []
    try:
        asked = json.loads(text)
        steps, least, largest = int(asked["steps"]), float(asked["min"]), float(asked["max"])
        if steps >= 2 and 0.0 < least < largest < math.inf:
            return [LrRange(steps, least, largest, bool(asked.get("continue")))]
    except (ValueError, KeyError, TypeError):
        pass
    notices.say_once("%s=%s is not usable; no range test" % (VARIABLE, text))
    return []


class LrRange:
    """A probe, the last in their order: the groups probe has read a step's rates by the time that this one puts them back."""

    name = "lr_range"

    def __init__(self, steps, least, largest, goes_on):
        self.curve = lr_curve.Curve()
        self._steps, self._least, self._largest = steps, least, largest
        self._goes_on = goes_on
        self._before_first = 1 if goes_on else 0  # iterations that are none of the test's
        self._bases = {}  # id(group) -> its own rate
        self._groups = {}  # id(optimizer) -> (optimizer, its groups as they were before the test)
        self._reference = None  # the largest rate of the first optimizer: the one that the test speaks of
        self._entries = []
        self._last = None  # a weak reference to the optimizer that an iteration ends with, once one has
        self._keepsake = None
        self._heard = []  # steps whose loss has arrived
        self._diverged = False
        self._over = False  # no more rates are set
        self._left = False
        self._detached = False

    # ------------------------------------------------------------------------------------------------------- probe
    def install(self, recorder):
        from torch.optim import optimizer

        self._recorder = recorder
        # A ledger of its own: only between a step and what follows it may weights be put back, so what does it stays in
        # behind a `detach`, which comes at any moment and from any thread, until the next optimizer step.
        self._own = patching.Ledger()
        self._schedules = lr_schedules.HeldSchedules(self._own, lambda: recorder.iteration)
        self._own.hook(optimizer.register_optimizer_step_post_hook, recorder.hook(self.name, self._after_detach))

    def remove(self):
        """Everything of the job's is as the job has it, from the end of the iteration that is under way. From any thread."""
        self._detached = True
        if self._recorder.iteration == 0 or (self._over and not self._schedules.holding):
            self._withdraw()
        elif not self._over and self._groups:
            self._tell_short()

    def before(self, part):
        """Set the rates of the step that is about to be taken."""
        if self._over:
            self._schedules.holding = False  # a scheduler's step behind the last optimizer step of the test belongs to the test
            if not self._goes_on:
                self._leave()
            return
        index = self._recorder.upcoming(part.entry) - self._before_first - 1
        if index < 0:
            return
        self._schedules.holding = True
        groups = part.param_groups()
        if self._reference is None:
            self._reference = max([_rate(group) for group in groups] or [0.0])
        optimizer = part.entry.optimizer()
        if id(optimizer) not in self._groups:
            self._groups[id(optimizer)] = (optimizer, keepsake.groups_of(optimizer))
        rate = lr_curve.rate_at(index, self._steps, self._least, self._largest)
        for group in groups:
            base = self._bases.setdefault(id(group), _rate(group))
            _set_rate(group, rate * (base / self._reference if self._reference > 0.0 else 1.0))

    def after(self, part):
        """Count the step that was taken, or skipped by the loss scaler."""
        if self._over:
            return
        index = part.step - self._before_first - 1
        if index < 0:
            self._keep(part)
            return
        skipped = bool(part.get("skipped"))
        if not self._groups and not skipped:
            self._give_up("its optimizer steps inside backward, before anybody can set the rate")
            return
        rate = lr_curve.rate_at(index, self._steps, self._least, self._largest)
        if not skipped:  # its weights did not move: the point would say nothing of the rate
            part.at_end(lambda done: self._hear(done.step, rate, done.get("loss")))
        if part.complete:
            self._last = part.entry.optimizer
        if index >= self._steps or (part.complete and (self._diverged or index == self._steps - 1)):
            self._finish(part)

    def at_exit(self):
        """The process ends. In the middle of the test, what it has saved is a model that the test has wrecked."""
        if self._over or not self._groups:
            return
        self._over = True
        text = (
            "the command ended after %d of the range test's %d steps: %sa model that it saved is the test's, not a training's"
        )
        notices.say_once(text % (len(self._heard), self._steps, "nothing was put back, " if self._goes_on else ""))
        self._tell_short()

    def _tell_short(self):
        if self._heard:
            self._recorder.session.meta({"lr_find_cut_short": True})
            self._tell()
        else:
            self._recorder.session.meta({"lr_find_failed": "no loss was seen"})

    # ----------------------------------------------------------------------------------------------------- details
    def _keep(self, part):
        """`continue`: the first iteration has been taken as ever; what stands now is what will be put back."""
        if part.entry not in self._entries:
            self._entries.append(part.entry)
        optimizers = [entry.optimizer() for entry in self._entries if entry.optimizer is not None]
        roots = [root() for entry in self._entries for root in entry.roots]
        scaler = self._recorder.by_name["loss"].scaler()
        self._keepsake = None  # the memory of the old one first
        self._keepsake = keepsake.Keepsake(
            [root for root in roots if root is not None],
            [optimizer for optimizer in optimizers if optimizer is not None],
            [scaler] if scaler is not None else [],
        )

    def _hear(self, step, rate, loss):
        """The loss of a step has arrived; of several optimizers in one iteration the first one's counts."""
        if loss is None or self._diverged or (self._heard and step == self._heard[-1]):
            return
        self.curve.add(rate, loss)
        self._heard.append(step)
        # Ranks see different losses: were each to stop by its own, the others would wait for it for ever.
        if identity.ranks()[1] == 1 and self.curve.has_diverged():
            self._diverged = True

    def _finish(self, part):
        left_out = self._put_back()
        if left_out is not None:
            text = "the range test is over; training goes on from where it was before"
            text += "".join("; not restored: " + what for what in left_out)
            self._recorder.session.event("notice", part.step, 0.0, text)
        part.at_end(lambda _done: self._tell())

    def _put_back(self):
        """Everything as it was before the test; what of it could not be kept, or None when only the rates were."""
        self._over = True
        left_out = None
        if self._goes_on and self._keepsake is not None:
            self._keepsake.restore()
            left_out, self._keepsake = self._keepsake.left_out, None
        for optimizer, groups in self._groups.values():  # as they were when the test began, after the schedulers' last step
            keepsake.put_groups_back(optimizer, groups)
        if self._goes_on or self._detached:
            self._schedules.catch_up()
        return left_out

    def _after_detach(self, optimizer, _args, _kwargs):
        """Behind every optimizer step, by torch's own hook; the first iteration after a `detach` is the test's last one."""
        if not self._detached or self._recorder.capturing():
            return
        if self._over or not self._groups:  # a scheduler's step from here on is the training's again
            self._withdraw()
            return
        if self._last is not None and self._last() not in (None, optimizer):
            return  # another one's graph may be alive, and must find its weights as they were
        if self._put_back() is None:
            notices.say_once("detached in the middle of the range test: the rates are put back; the weights are the test's")

    def _withdraw(self):
        self._schedules.release()
        self._own.remove()

    def _tell(self):
        curve = self.curve
        facts = {"lr_find_points": len(curve.rates), "lr_find_diverged": self._diverged}
        for name, value in (("suggestion", curve.suggestion()), ("minimum_tenth", curve.minimum_tenth())):
            if value is not None:
                facts["lr_find_" + name] = value
        session = self._recorder.session
        for step, *values in zip(self._heard, curve.rates, curve.losses, curve.smoothed()):
            for tag, value in zip(("rate", "loss", "smoothed_loss"), values):
                session.scalar("lr_find/" + tag, step, value)
        session.meta(facts)

    def _give_up(self, why):
        self._over = True
        self._recorder.session.meta({"lr_find_failed": why})
        notices.say_once("no range test: %s" % why)
        if not self._goes_on:
            self._leave()

    def _leave(self):
        """End the process here, with everything recorded delivered, and nothing of the job's own clean-up run."""
        if self._left:
            return
        self._left = True
        self._recorder.session.end("exit")
        children = getattr(sys.modules.get("multiprocessing.process"), "_children", ())
        for child in list(children):  # a DataLoader's workers would look for their parent only after some seconds
            try:
                child.terminate()
            except Exception:  # noqa: S110 - one that has gone already
                pass
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:  # noqa: S110 - a pipe that nobody reads
                pass
        os._exit(0)


def _rate(group):
    return float(group.get("lr", 0.0))


def _set_rate(group, rate):
    if hasattr(group.get("lr"), "fill_"):
        group["lr"].fill_(rate)
    elif "lr" in group:
        group["lr"] = rate
