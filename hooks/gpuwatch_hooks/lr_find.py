"""`gpuwatch.lr_find(step, optimizer)`: a learning-rate range test by hand, after which everything is as it was before."""

import math

from . import keepsake, lr_curve, untraced


class LrResult:
    """What a range test found.

    `curve`: a list of (rate, loss, smoothed loss); `suggestion`: the rate at which the smoothed loss falls fastest;
    `minimum_tenth`: a tenth of the rate with the least loss (None where there is none); `diverged`: whether that ended it.
    """

    def __init__(self, curve, diverged):
        self.curve = list(zip(curve.rates, curve.losses, curve.smoothed()))
        self.suggestion = curve.suggestion()
        self.minimum_tenth = curve.minimum_tenth()
        self.diverged = diverged

    def __repr__(self):
        found = "no suggestion" if self.suggestion is None else "suggestion %.3g" % self.suggestion
        return "LrResult(%d points, %s)" % (len(self.curve), found)

    def plot(self, axes=None):
        """Draw the curve with matplotlib (ImportError where it is missing) into `axes`, or a figure of its own; the axes."""
        if axes is None:
            from matplotlib import pyplot as plt

            _, axes = plt.subplots()
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        axes.plot([rate for rate, _, _ in self.curve], [loss for _, loss, _ in self.curve], ".", color="0.75")
        axes.plot([rate for rate, _, _ in self.curve], [loss for _, _, loss in self.curve])
        if self.suggestion is not None:
            axes.axvline(self.suggestion, linestyle="--", color="tab:red", label="%.2g" % self.suggestion)
            axes.legend()
        finite = [loss for _, _, loss in self.curve if math.isfinite(loss)]
        if finite:  # the last points climb to many times the start
            fall = finite[0] - min(finite) or abs(finite[0]) or 1.0
            axes.set_ylim(min(finite) - 0.3 * fall, min(max(finite), finite[0] + fall) + 0.3 * fall)
        return axes


def lr_find(step, optimizer, model=None, scaler=None, steps=100, min_lr=1e-7, max_lr=10.0, restore=True):
    """Run `step()` up to `steps` times with learning rates from `min_lr` to `max_lr`; an LrResult.

    `step` takes one training step of your own (forward, backward, `optimizer.step()`, `zero_grad`) and returns its loss, a
    float or a tensor of one element. `optimizer`: one, or a list of them; the largest rate of the first one's groups follows
    the ramp and all other groups keep their ratio to it. Afterwards weights, optimizer states, rates, the scaler's scale and
    all random numbers are as before, bit for bit, and with `model` (a torch.nn.Module, or a list) its buffers too, unless
    `restore` is false; also when `step` raises, whose exception passes. Leave a scheduler's step out of `step`: its state is
    not restored.

    Raises ValueError for impossible numbers. Reads each loss, and so waits for the device at every step of the test.
    """
    optimizers = list(optimizer) if isinstance(optimizer, (list, tuple)) else [optimizer]
    modules = [] if model is None else list(model) if isinstance(model, (list, tuple)) else [model]
    if steps < 2 or not 0.0 < min_lr < max_lr < math.inf:
        raise ValueError(
            "a range test needs at least 2 steps and 0 < min_lr < max_lr, not %r, %r, %r" % (steps, min_lr, max_lr)
        )
    bases = [(group, float(group["lr"])) for one in optimizers for group in one.param_groups]
    reference = max([float(group["lr"]) for group in optimizers[0].param_groups])
    before = keepsake.Keepsake(modules, optimizers, [] if scaler is None else [scaler]) if restore else None
    groups = [(one, keepsake.groups_of(one)) for one in optimizers]
    curve, diverged = lr_curve.Curve(), False
    try:
        for index in range(steps):
            rate = lr_curve.rate_at(index, steps, min_lr, max_lr)
            for group, base in bases:
                _set(group, rate * (base / reference if reference > 0.0 else 1.0))
            loss = step()
            curve.add(rate, float(loss.detach() if hasattr(loss, "detach") else loss))
            diverged = curve.has_diverged()
            if diverged:
                break
    finally:
        if before is not None:
            before.restore()
        for one, kept in groups:
            keepsake.put_groups_back(one, kept)
    return LrResult(curve, diverged)


untraced.hide(lr_find)


def _set(group, rate):
    if hasattr(group["lr"], "fill_"):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
