"""The training loss, read where every loop must pass it: at the root of torch.autograd.backward, in the user's own units.

Only scalar roots count. A root that came out of GradScaler.scale, directly or a few nodes back (`scaler.scale(loss) / 4`), is
divided by the scale. The micro-batches of a step are averaged; where each root is a division by exactly their number, which is
how accumulation is written, they are added instead: that sum is the loss that the step has minimised. Those of a Hugging
Face Trainer are added always, since it divides each by the tokens of the whole step, or by the number of micro-batches. On
the CPU a value costs 0.2 us; on a device a copy of the scalar is queued, since `.item()` would wait.
"""

import sys
import time

from .. import in_backward
from .loss_scale import MARK

_now = time.perf_counter_ns
#: Nodes looked at behind the root.
_SEARCHED_NODES = 12
#: Frames between a backward call and the Trainer's step: torch's, Accelerate's, ours.
_SEARCHED_FRAMES = 12
#: Backward calls kept for one step: a job whose optimizer is none of torch's never closes a step.
MAX_BACKWARDS = 4096
_PASS_THROUGH = (
    "ToCopyBackward0",
    "AliasBackward0",
    "ViewBackward0",
    "ReshapeAliasBackward0",
    "SqueezeBackward0",
    "UnsqueezeBackward0",
)
_LOOKED_THROUGH = frozenset((*_PASS_THROUGH, "DivBackward0", "MulBackward0"))


class LossProbe:
    """See the module. A window holds the backward calls since the last optimizer step of any optimizer."""

    name = "loss"

    def install(self, recorder):
        self._recorder = recorder
        self._window = []  # (value, divisor, scaler or None): value a float or a 0-d device tensor, None without a scalar root
        self._previous = []  # the window that the last part has used
        self._previous_iteration = 0
        self._divisor = None  # by which this loop divides its losses
        self._shares = False  # whether the open window's losses are shares of one, by a Trainer's division
        self._depth = 0
        import torch

        begin, end = recorder.hook(self.name, self._begin, False), recorder.hook(self.name, self._end)
        self._scaling = recorder.by_name["loss_scale"]
        self._beginnings = recorder.session.guard.together(
            [(name, recorder.by_name[name].at_backward) for name in ("modes", "clearing", "validation")]
        )
        recorder.session.ledger.wrap(torch.autograd, "backward", lambda original: _watched(original, begin, end))

    def scaler(self):
        """The loss scaler behind the backward calls of the open step, or None."""
        for _, _, scaler in self._window or self._previous:
            if scaler is not None:
                return scaler
        return None

    def after(self, part):
        """The loss of the step, from the backward calls behind it."""
        window = self._window
        if not window and self._previous_iteration == part.step:
            window = self._previous  # a second optimizer that steps on the same backward
        self._previous, self._window, self._previous_iteration = window, [], part.step
        shares, self._shares = self._shares, False
        if not window:
            return
        part.fields["micro_batches"] = float(len(window))
        if len(window) == 1 and isinstance(window[0][0], float) and self._divisor is None:  # nearly every loop
            part.fields["loss"] = window[0][0]
            return
        roots = [root for root in window if root[0] is not None]
        if (part.closure_calls or 0) > 1:
            roots = roots[:1]  # the later evaluations are at other weights
        if not roots:
            return
        divisors = {divisor for _, divisor, _ in roots}
        if len(roots) > 1 and divisors == {float(len(roots))}:
            self._divisor = float(len(roots))
        # an epoch's last step may have fewer micro-batches than the loop divides by
        factor = self._divisor if self._divisor is not None and divisors == {self._divisor} else 1.0
        factor = 1.0 if shares else factor / len(roots)
        tensors = [value for value, _, _ in roots if not isinstance(value, float)]
        if not tensors:
            part.set("loss", sum([value for value, _, _ in roots]) * factor)
            return
        host = [value for value, _, _ in roots if isinstance(value, float)]
        part.read(tensors, lambda *values: part.set("loss", (sum(host) + sum([v[0] for v in values])) * factor))

    # ---------------------------------------------------------------------------------------------------- wrappers
    def _begin(self, args, kwargs):
        began = _now()
        recorder = self._recorder
        if in_backward.running() or recorder.capturing():
            return False  # a recomputed block's own backward, or a graph that must not grow
        self._depth += 1
        if self._depth > 1:
            return True
        recorder.clock.enter("other", began, between="forward")
        recorder.backwards += 1
        if len(self._window) >= MAX_BACKWARDS:
            del self._window[: MAX_BACKWARDS // 2]
        if len(self._window) == 1:
            self._shares = _in_a_trainer(sys._getframe(1))
        roots = args[0] if args else kwargs.get("tensors")
        self._window.append(_loss_of((roots,) if hasattr(roots, "backward") else tuple(roots or ()), self._scaling.marked))
        self._beginnings()
        recorder.clock.turn("backward", _now())
        return True

    def _end(self):
        self._depth -= 1
        if self._depth == 0:
            began = _now()
            self._recorder.session.guard.run("clearing", self._recorder.by_name["clearing"].after_backward)
            self._recorder.clock.leave(began)
            self._recorder.backward_ended(began)


def _loss_of(roots, scaled):
    """(value, divisor, scaler) of the scalar roots of one backward call; several are added. `scaled`: some loss has been."""
    value, divisor, scaler = None, 1.0, None
    for root in roots:
        if not hasattr(root, "numel") or root.numel() != 1 or not root.is_floating_point():
            continue
        one, divisor, scaler = _value(root, scaled)
        value = one if value is None else value + one
    return value, divisor, scaler


def _value(root, scaled):
    node = root.grad_fn
    if scaled or node is None or node.name() in _LOOKED_THROUGH:
        divisor, scaler = _ancestry(node, scaled)
    else:
        divisor, scaler = 1.0, None
    scale = scaler._scale if scaler is not None else None
    if root.is_cpu:
        value = root.item()
        return (value / scale.item() if scale is not None and scale.device.type == "cpu" else value), divisor, scaler
    value = root.detach().double().reshape(())  # a copy: the loop may change its loss in place afterwards
    if value.data_ptr() == root.data_ptr():
        value = value.clone()
    return (value / scale if scale is not None else value), divisor, scaler


def _ancestry(node, scaled):
    """(divisor, scaler) that the root's graph tells of: constants it was divided by, and the scaler whose `scale` made it.

    Where nothing was ever `scaled`, the search ends with the constants: 2 us instead of 17.
    """
    divisor, scaler, on_path = 1.0, None, True
    queue, seen = [node], 0
    while queue and seen < _SEARCHED_NODES:
        node = queue.pop(0)
        seen += 1
        if node is None:
            continue
        reference = node.metadata.get(MARK) if scaled else None
        if reference is not None:
            scaler = reference() or scaler
        following = [child for child, _ in node.next_functions if child is not None]
        if on_path:
            if reference is None:
                constant = _constant_divisor(node)
                if constant is not None:
                    divisor *= constant
                elif node.name() not in _PASS_THROUGH:
                    on_path = False
            on_path = on_path and len(following) == 1
        if not on_path and (scaler is not None or not scaled):
            break
        queue.extend(following)
    return divisor, scaler


def _constant_divisor(node):
    """k for a node that is `x / k` or `x * (1 / k)` with a number k; else None."""
    name = node.name()
    if name == "DivBackward0":
        other = node._saved_other
        return other.item() if other.dim() == 0 and other.device.type == "cpu" and not other.requires_grad else None
    if name == "MulBackward0":
        other = node._saved_other
        if other is not None and other.dim() == 0 and other.device.type == "cpu" and not other.requires_grad:
            constant = other.item()
            if 0.0 < constant < 1.0:
                nearest = round(1.0 / constant)
                return float(nearest) if abs(constant * nearest - 1.0) < 1e-12 else None
    return None


def _in_a_trainer(frame):
    """Whether a Hugging Face Trainer's training_step has called."""
    module = sys.modules.get("transformers.trainer")
    if module is None:
        return False
    step = module.Trainer.training_step.__code__
    for _ in range(_SEARCHED_FRAMES):
        if frame is None or frame.f_code is step:
            break
        frame = frame.f_back
    return frame is not None and frame.f_code is step


def _watched(original, begin, end):
    def backward(*args, **kwargs):
        began = begin(args, kwargs)
        try:
            return original(*args, **kwargs)
        finally:
            if began:
                end()

    return backward
