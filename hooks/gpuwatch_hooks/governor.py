"""The overhead budget: measures what the hooks cost the training thread and thins the dear statistics until it is kept.

Three families of statistics may be taken less often, in this order: update ratios (a copy of the weights), histograms,
per-layer tables. The global norm, the non-finite count and everything that costs no pass over the tensors stay at every
step, whatever they cost: then `overhead_ratio` says how much. Costs are measured on the job itself (perf_counter_ns, which
makes no system call), so the plan is computed from them instead of being searched for: one look decides.
"""

import math

FAMILIES = ("update_ratio", "histograms", "layers")
#: How many times rarer than asked each family becomes, from the first rung to the last.
RUNGS = [(1, 1, 1)]
for _factor in (4, 16, 64, 256, 1024):
    for _family in range(len(FAMILIES)):
        RUNGS.append((*RUNGS[-1][:_family], _factor, *RUNGS[-1][_family + 1 :]))
_LEVELS = [sum(1 for factor in rung if factor > 1) for rung in RUNGS]
_LOOK_EVERY = 16  # steps between two looks at the plan
_SMOOTHING = 1 / 32
_SETTLED = 31  # the steps until then are averaged
_RESTORE_AT = 0.7  # go back a rung only when that is expected to take less than this share of the budget


class Governor:
    """Decides at which steps a family is measured. All times in nanoseconds of the training thread."""

    def __init__(self):
        self.rung = 0
        self.overhead_ratio = 0.0
        self.thinned_more = False  # by the last change of plan
        self._step_ns = self._hook_ns = 0  # smoothed, as they were
        self._usual_ns = self._base_ns = 0  # smoothed, without outliers and without what was sampled
        self._costs = dict.fromkeys(FAMILIES)
        self._samples = dict.fromkeys(FAMILIES, 0)
        self._sampled = {}  # family -> nanoseconds in the present step
        self._looks = 0

    @property
    def thinning_level(self):
        """Index into wire.THINNING: how many families, in order, are thinned."""
        return _LEVELS[self.rung]

    @property
    def base_ratio(self):
        """Share of a usual step that goes into what is never thinned."""
        return self._base_ns / self._usual_ns if self._usual_ns else 0.0

    def interval(self, family, every):
        """Steps from one measurement of `family` to the next, when the user asked for each `every`-th."""
        return every * RUNGS[self.rung][FAMILIES.index(family)]

    def norms_interval(self, every):
        """Steps from one table of per-layer norms, which the always-on pass has anyway, to the next: only writing it costs."""
        return every * max(1, RUNGS[self.rung][-1] // 16)

    def due(self, family, turn, every):
        """Whether `family` is measured at an optimizer's `turn`-th step."""
        return family in self.families_due(turn, every)

    def families_due(self, turn, every):
        """The families that are measured at an optimizer's `turn`-th step. Thinned ones take different steps."""
        return [
            family
            for place, (family, factor) in enumerate(zip(FAMILIES, RUNGS[self.rung]))
            if not (turn + every * (factor // len(FAMILIES)) * place) % (every * factor)
        ]

    def spent(self, family, nanoseconds):
        """A part of a step's measurement of `family` took this long."""
        self._sampled[family] = self._sampled.get(family, 0) + nanoseconds

    def _learn(self, family, nanoseconds):
        known, self._samples[family] = self._costs[family], self._samples[family] + 1
        if self._samples[family] <= 2:  # the first one also allocates and imports: the second takes its place
            self._costs[family] = nanoseconds
        else:  # one sample that was interrupted by another process must not thin for a thousand steps
            self._costs[family] = 0.7 * known + 0.3 * min(nanoseconds, 3 * known)

    def step(self, step_ns, hook_ns, budget, every):
        """A step is over: it took `step_ns`, the hooks `hook_ns` of it. A sentence when the plan changed, else None."""
        base_ns = hook_ns
        if self._sampled:
            base_ns = max(0, hook_ns - sum(self._sampled.values()))
            for family, nanoseconds in self._sampled.items():
                self._learn(family, nanoseconds)
            self._sampled = {}
        looks = self._looks
        if not looks:
            self._step_ns, self._hook_ns, self._usual_ns, self._base_ns = step_ns, hook_ns, step_ns, base_ns
        weight = _SMOOTHING if looks > _SETTLED else 1 / (looks + 1)
        usual_ns, usual_base_ns = self._usual_ns, self._base_ns
        self._step_ns += weight * (step_ns - self._step_ns)
        self._hook_ns += weight * (hook_ns - self._hook_ns)
        # For the plan, a step with a validation run in it counts as a long step, not as an hour.
        self._usual_ns += weight * (min(step_ns, 4 * usual_ns) - usual_ns)
        self._base_ns += weight * (min(base_ns, 4 * usual_base_ns + 1000) - usual_base_ns)
        self._looks += 1
        self.overhead_ratio = self._hook_ns / self._step_ns if self._step_ns else 0.0
        if self._looks % _LOOK_EVERY and self._looks != 6:
            return None
        return self._look(budget, every)

    def _look(self, budget, every):
        allowed = budget * self._usual_ns
        # Where what is never thinned fills the budget by itself, thinning the rest to nothing would save next to nothing and
        # leave the curves empty: the families may then take an eighth of what is spent anyway.
        left = max(allowed - self._base_ns, self._base_ns / 8) if budget < 1.0 else math.inf  # the whole step: no budget
        rung = next((r for r in range(len(RUNGS)) if self._families_ns(r, every) <= left), len(RUNGS) - 1)
        if rung < self.rung:
            if self._families_ns(self.rung - 1, every) > _RESTORE_AT * left:
                return None
            rung = self.rung - 1
        if rung == self.rung:
            return None
        self.thinned_more = rung > self.rung
        self.rung = rung
        return self.describe(every)

    def _families_ns(self, rung, every):
        factors = zip(FAMILIES, RUNGS[rung])
        return sum((self._costs[family] or 0) / (every * factor) for family, factor in factors)

    def describe(self, every):
        """What is measured how often now, in one sentence."""
        intervals = ["%s every %d" % (family.replace("_", " "), self.interval(family, every)) for family in FAMILIES]
        return "the hooks take %.2f %% of a step: %s steps" % (100 * self.overhead_ratio, ", ".join(intervals))
