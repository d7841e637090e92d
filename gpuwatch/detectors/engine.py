"""All rules over all runs: a step or a moment goes in, findings come out."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from gpuwatch.detectors.episode import Episode
from gpuwatch.detectors.loss_level import LossLevel
from gpuwatch.detectors.moment import Moment
from gpuwatch.detectors.regime import Regime
from gpuwatch.detectors.registry import RULES, thresholds
from gpuwatch.detectors.rule import AnyRule, MomentRule, Rule, Thresholds
from gpuwatch.detectors.sample import Sample
from gpuwatch.state.findings import Finding
from gpuwatch.state.runs import Run
from gpuwatch.state.steps import Step

#: A rule that raises this often in one run is switched off there: the others go on.
MAX_FAULTS = 3


class Engine:
    """Holds each run's rules. `settings`: the configuration's [rules.NAME] tables; raises ValueError for a bad one."""

    def __init__(self, settings: Mapping[str, Mapping[str, bool | float | str]] | None = None) -> None:
        self.faults: dict[str, int] = {}  # rule -> times that it raised
        self._rules: list[tuple[type[AnyRule[Any]], Thresholds]] = []
        for rule in RULES:
            given = dict((settings or {}).get(rule.name, {}))
            if given.pop("enabled", True):
                self._rules.append((rule, thresholds(rule, given)))
        self._watches: dict[str, Watch] = {}

    def observe(self, run: Run, step: Step) -> list[Finding]:
        """The findings that opened, grew more severe or closed with this step."""
        changed = self._watch(run).observe(run, step, self.faults)
        for finding in changed:
            if finding.step == step.step and finding.state == "active":
                finding.time = run.wall_seconds(step.monotonic_ns)
        return changed

    def look(self, run: Run, moment: Moment) -> list[Finding]:
        """The same of a moment: what opened, grew more severe or closed."""
        changed = self._watch(run).look(moment, self.faults)
        for finding in changed:
            if not finding.time:
                finding.time = run.wall_seconds(moment.monotonic_ns)
        return changed

    def end(self, run: Run) -> list[Finding]:
        """The run has ended: what is open is closed, and its rules are forgotten."""
        watch = self._watches.pop(run.directory, None)
        return watch.end() if watch is not None else []

    def _watch(self, run: Run) -> Watch:
        watch = self._watches.get(run.directory)
        if watch is None:
            watch = self._watches[run.directory] = Watch([rule(settings) for rule, settings in self._rules])
            watch.recall(run)
        return watch


class Watch:
    """The rules of one run."""

    def __init__(self, rules: list[AnyRule[Any]]) -> None:
        self._rules = [(rule, Episode(rule)) for rule in rules if isinstance(rule, Rule)]
        self._moment_rules = [(rule, Episode(rule)) for rule in rules if isinstance(rule, MomentRule)]
        self._regime = Regime()
        self._loss_level = LossLevel()
        self._previous_ns = 0
        self._logged_count = 0
        self._faults: dict[str, int] = {}
        self._recalled = False

    def recall(self, run: Run) -> None:
        """Show the rules how a run began that a daemon before us has watched; what they say to it was said then.

        What they took for normal there is forgotten with the next step, which begins another regime.
        """
        for step in run.first_steps:
            sample = Sample(step, run.tensors)
            sample.loss_level = self._loss_level
            for rule, _ in self._rules:
                with contextlib.suppress(Exception):
                    rule.judge(sample)
            self._recalled = True

    def observe(self, run: Run, step: Step, faults: dict[str, int]) -> list[Finding]:
        new_regime = self._regime.observe(step) or self._recalled
        self._recalled = False
        sample = Sample(step, run.tensors, run.counters.dropped, new_regime=new_regime)
        sample.rate_jump, sample.loss_level = self._regime.jump, self._loss_level
        sample.facts, sample.events = run.facts, run.events
        if run.logged_count != self._logged_count:
            new = run.logged_count - self._logged_count
            sample.logged, self._logged_count = list(run.logged)[-new:], self._logged_count + new
        sample.previous_ns, self._previous_ns = self._previous_ns, step.monotonic_ns
        changed = []
        for rule, episode in self._rules:
            if self._faults and self._faults.get(rule.name, 0) >= MAX_FAULTS:
                continue
            try:
                finding = episode.judge(sample.number, rule.judge(sample))
            except Exception:  # noqa: BLE001  # one rule's bug must not cost the others, nor the run
                self._fault(rule.name, faults)
                continue
            if finding is not None:
                changed.append(finding)
        return changed

    def look(self, moment: Moment, faults: dict[str, int]) -> list[Finding]:
        changed = []
        for rule, episode in self._moment_rules:
            if self._faults.get(rule.name, 0) >= MAX_FAULTS:
                continue
            try:
                finding = episode.judge(moment.step, rule.judge(moment))
            except Exception:  # noqa: BLE001  # as above
                self._fault(rule.name, faults)
                continue
            if finding is not None:
                changed.append(finding)
        return changed

    def end(self) -> list[Finding]:
        episodes = [episode for _, episode in self._rules] + [episode for _, episode in self._moment_rules]
        return [finding for episode in episodes if (finding := episode.end()) is not None]

    def _fault(self, rule: str, faults: dict[str, int]) -> None:
        self._faults[rule] = self._faults.get(rule, 0) + 1
        faults[rule] = faults.get(rule, 0) + 1
