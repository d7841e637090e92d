"""Which precision each step of a comparison runs in, and what the blocks' times say together.

Blocks, not single steps: switching at each step was 11 % off on an H100 (ResNet-50, batch 64: 2.27 against 2.55 of two separate
runs; blocks and separate runs agreed within 2.5 %). Rounds in random order, so that a clock that drifts or a loader
that slows down falls on both sides alike.
"""

import math
import random

#: Steps after a switch that are not counted: the allocator, cuDNN's choices and casts of weights settle.
WARM_UP_STEPS = 2
#: Student's t, two-sided 95 %, for 1, 2, ... 30 degrees of freedom.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110,
    2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


class Plan:
    """`rounds` rounds in which every variant has one block of `block_steps` counted steps. Iterate by `variant_of(step)`."""

    def __init__(self, variants, rounds, block_steps, seed):
        if rounds < 2 or block_steps < 1 or len(variants) < 2:
            raise ValueError("a comparison needs two variants, two rounds and a step a block")
        generator = random.Random(seed)  # noqa: S311 - every rank draws the same: they must switch together
        self.variants = tuple(variants)
        self.block_steps = WARM_UP_STEPS + block_steps
        self.order = []
        for _ in range(rounds):
            shuffled = list(range(len(self.variants)))
            generator.shuffle(shuffled)
            self.order += shuffled
        self.steps = len(self.order) * self.block_steps
        self._seconds = [[] for _ in self.order]  # of each block's counted steps
        self._peaks = [0.0] * len(self.order)
        self._updates = []  # of each counted step that took one

    def block_of(self, step):
        """Index of the block that the step (0, 1, ...) belongs to, or None behind the last one."""
        block = step // self.block_steps
        return block if 0 <= block < len(self.order) else None

    def variant_of(self, step):
        """The variant's index at this step, or None behind the last one."""
        block = self.block_of(step)
        return None if block is None else self.order[block]

    def is_counted(self, step):
        return step % self.block_steps >= WARM_UP_STEPS

    def add(self, step, seconds, peak_bytes, update_seconds=0.0):
        """One step has taken `seconds`; the allocator's peak in its block so far is `peak_bytes` (0: not known).

        `update_seconds` are the optimizer's, in steps where these are timed apart and none of `seconds`; 0 otherwise.
        """
        block = self.block_of(step)
        if block is not None and self.is_counted(step):
            self._seconds[block].append(seconds)
            self._peaks[block] = max(self._peaks[block], peak_bytes)
            if update_seconds > 0.0:
                self._updates.append(update_seconds)

    def seconds(self, variant):
        """The median step of each of the variant's blocks, in the order of the rounds.

        An update is the same in every precision, since weights and gradients are float32 in all of them. Where dropped steps
        take none, the median of those that were taken stands for it in all blocks: without it a ResNet's Adam on a CPU made
        1.26x of two separate runs look like 1.85x (a busy machine).
        """
        update = median(self._updates) if self._updates else 0.0
        blocks = [took for index, took in zip(self.order, self._seconds) if index == variant]
        return [median(took) + update if took else math.nan for took in blocks]

    def steps_per_second(self, variant):
        taken = [value for value in self.seconds(variant) if value > 0.0]
        return 1.0 / median(taken) if taken else math.nan

    def peak_bytes(self, variant):
        """The highest peak of the variant's blocks, in bytes; NaN where memory is not counted (a CPU)."""
        return max([peak for index, peak in zip(self.order, self._peaks) if index == variant] or [0.0]) or math.nan

    def speedup(self, variant, base=0):
        """(ratio, low, high): how many times faster than `base`, with a 95 % confidence interval over the rounds."""
        logs = [
            math.log(slow / fast) for slow, fast in zip(self.seconds(base), self.seconds(variant)) if slow > 0.0 and fast > 0.0
        ]
        return interval(logs)


def interval(logs):
    """Geometric mean and 95 % interval (Student's t) of ratios whose logarithms these are; NaN for fewer than two."""
    if len(logs) < 2:
        return math.nan, math.nan, math.nan
    middle = math.fsum(logs) / len(logs)
    t = _T95[min(len(logs) - 1, len(_T95)) - 1]
    half = t * math.sqrt(math.fsum([(log - middle) ** 2 for log in logs]) / (len(logs) - 1)) / math.sqrt(len(logs))
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def median(values):
    """The middle of the sorted values. The statistics module would be the one that an attach has to import into a job."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
