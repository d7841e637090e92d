"""The curve of a learning-rate range test: loss over rate, smoothed; where to stop, and which rate it suggests.

Method: Smith, "Cyclical learning rates for training neural networks" (2017), with the bias-corrected exponential smoothing
and the steepest-descent suggestion that became usual since.
"""

import math

#: Weight of the newest loss in the moving average; 0.05 is what most range tests use.
SMOOTHING = 0.05
#: The test has seen enough when the smoothed loss is so many times its least value.
DIVERGED_RATIO = 4.0
#: Points that settle the moving average, and points of the final rise: neither may be suggested.
SKIPPED_AT_START, SKIPPED_AT_END = 10, 5


class Curve:
    """(rate, loss) pairs in the order of the test; `smoothed` has one value for each."""

    def __init__(self, smoothing=SMOOTHING):
        self._smoothing = smoothing
        self._average = 0.0
        self.rates = []
        self.losses = []
        self.smoothed = []
        self._weight = 0.0  # 1 - (1 - smoothing)**points: what the average is short of
        self._least = (math.inf, math.nan)  # (smoothed loss, rate) of the lowest point

    def add(self, rate, loss):
        """One step: the loss that was computed with the weights before it, and the rate that it was taken with."""
        self.rates.append(rate)
        self.losses.append(loss)
        self._average += self._smoothing * (loss - self._average)
        self._weight += self._smoothing * (1.0 - self._weight)
        self.smoothed.append(self._average / self._weight)
        self._least = min(self._least, (self.smoothed[-1], rate))

    def least(self):
        """(rate, smoothed loss) of the curve's lowest point; (NaN, inf) when no loss was finite."""
        loss, rate = self._least
        return rate, loss

    def has_diverged(self):
        """Whether further steps could only show a rising loss. For a loss that may be negative only NaN and infinity tell."""
        if not self.losses:
            return False
        if not math.isfinite(self.losses[-1]):
            return True
        _, least = self.least()
        return len(self.losses) > SKIPPED_AT_START and least > 0.0 and self.smoothed[-1] > DIVERGED_RATIO * least

    def suggestion(self):
        """The rate at which the smoothed loss falls fastest with the logarithm of the rate, or None when it falls nowhere."""
        last = len(self.rates) - SKIPPED_AT_END
        slopes = []
        for i in range(max(1, SKIPPED_AT_START), last):
            width = math.log(self.rates[i + 1] / self.rates[i - 1])
            slope = (self.smoothed[i + 1] - self.smoothed[i - 1]) / width if width > 0.0 else math.nan
            if math.isfinite(slope) and slope < 0.0:
                slopes.append((slope, self.rates[i]))
        return min(slopes)[1] if slopes else None

    def minimum_tenth(self):
        """A tenth of the rate with the least smoothed loss: the careful choice. None when nothing was finite."""
        rate, _ = self.least()
        return rate / 10.0 if rate == rate else None  # noqa: PLR0124  # not NaN


def rate_at(index, steps, least, largest):
    """The index-th of `steps` rates from `least` to `largest`, equal factors apart."""
    return least * (largest / least) ** (index / max(1, steps - 1))
