"""The curve of a learning-rate range test: loss over rate, smoothed; where to stop, and which rate it suggests.

Method: Smith, "Cyclical learning rates for training neural networks" (2017), and the steepest-descent suggestion that became
usual since. The usual smoothing, an exponential average with weight 0.05, lags twenty points behind the losses, two decades
of the rate in a test of a hundred steps: it suggests rates that are too high. The curve here is smoothed to both sides
of a point; only the decision to stop, which cannot look ahead, uses an average of the past.
"""

import math

#: Weight of the newest loss in the average that decides when to stop: a lag of four points.
PAST_WEIGHT = 0.2
#: The test has seen enough when that average is so many times its least value.
DIVERGED_RATIO = 4.0
#: Standard deviation of the Gaussian, in points, as a share of the curve; at least the second.
WIDTH_RATIO, LEAST_WIDTH = 0.03, 1.5
#: Points at the beginning that only say what the loss is, and the last ones of the rise: neither is suggested.
SKIPPED_AT_START, SKIPPED_AT_END = 5, 5


class Curve:
    """(rate, loss) pairs in the order of the test. A loss is the one before its step, as the step's gradient saw it."""

    def __init__(self):
        self.rates = []
        self.losses = []
        self._past = None
        self._least_past = math.inf

    def add(self, rate, loss):
        """One step and the rate that it was taken with."""
        self.rates.append(rate)
        self.losses.append(loss)
        self._past = loss if self._past is None else self._past + PAST_WEIGHT * (loss - self._past)
        self._least_past = min(self._least_past, self._past)

    def has_diverged(self):
        """Whether further steps could only show a rising loss. For a loss that may be negative only NaN and infinity tell."""
        if not self.losses:
            return False
        if not math.isfinite(self.losses[-1]):
            return True
        return len(self.losses) > SKIPPED_AT_START and self._least_past > 0.0 and self._past > DIVERGED_RATIO * self._least_past

    def smoothed(self):
        """The losses under a Gaussian window over the index of the point; NaN where none in its reach is finite."""
        width = max(LEAST_WIDTH, WIDTH_RATIO * len(self.losses))
        reach = int(3 * width)
        kernel = [math.exp(-0.5 * (offset / width) ** 2) for offset in range(reach + 1)]
        found = []
        for i in range(len(self.losses)):
            total = weight = 0.0
            for j in range(max(0, i - reach), min(len(self.losses), i + reach + 1)):
                if math.isfinite(self.losses[j]):
                    total += kernel[abs(i - j)] * self.losses[j]
                    weight += kernel[abs(i - j)]
            found.append(total / weight if weight > 0.0 else math.nan)
        return found

    def suggestion(self):
        """The rate at which the smoothed loss falls fastest with the logarithm of the rate, or None when it falls nowhere.

        Not sought behind its minimum: a loss that has gone up a hundredfold may come down again, faster than it ever fell.
        """
        smoothed, slopes = self.smoothed(), []
        for i in range(max(1, SKIPPED_AT_START), min(len(self.rates) - SKIPPED_AT_END, _minimum(smoothed) + 1)):
            width = math.log(self.rates[i + 1] / self.rates[i - 1])
            slope = (smoothed[i + 1] - smoothed[i - 1]) / width if width > 0.0 else math.nan
            if math.isfinite(slope) and slope < 0.0:
                slopes.append((slope, self.rates[i]))
        return min(slopes)[1] if slopes else None

    def minimum_tenth(self):
        """A tenth of the rate with the least smoothed loss: the careful choice. None when it fell nowhere."""
        smoothed = self.smoothed()
        index = _minimum(smoothed)
        return self.rates[index] / 10.0 if index > 0 else None


def _minimum(smoothed):
    """The index of the least loss before the curve first rises as far above its beginning as it ever falls below it; or -1."""
    finite = [i for i, loss in enumerate(smoothed) if math.isfinite(loss)]
    if not finite:
        return -1
    first, least = smoothed[finite[0]], min([smoothed[i] for i in finite])
    calm = []
    for i in finite:
        if smoothed[i] > 2.0 * first - least and first > least:
            break
        calm.append((smoothed[i], i))
    return min(calm)[1]


def rate_at(index, steps, least, largest):
    """The index-th of `steps` rates from `least` to `largest`, equal factors apart."""
    return least * (largest / least) ** (index / max(1, steps - 1))
