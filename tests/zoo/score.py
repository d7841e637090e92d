"""What the findings are worth: for each rule, how many faults it found and how soon, and when it spoke without a reason.

A pair of a program and a rule is

    found       the label expects the rule, and it spoke at the onset or later
    missed      the label expects it, and it did not
    false       it spoke although the label neither expects nor allows it, or before the onset
    (nothing)   the label allows it: what it says is a true consequence of the fault

Every finding counts, also those of severity info.
"""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

from gpuwatch.state.findings import Finding
from tests.zoo.keeper import Outcome
from tests.zoo.program import Program

#: Advice about any training, which is no fault of the program: it is counted only where a label speaks of it.
ADVICE = {"no_weight_decay"}
WITHIN_STEPS = 20
#: Rules whose faults need no window: their median detection has a limit.
PROMPT = {"nonfinite_loss", "nonfinite_gradient", "exploding_gradient", "loss_scale_collapse", "unscaled_clipping"}
AT_LEAST = 0.95


class Verdict(NamedTuple):
    """One program: rules that found its fault (steps from the onset), rules that missed it, findings without a reason."""

    program: Program
    outcome: Outcome
    found: dict[str, int]
    missed: list[str]
    false: list[Finding]

    @property
    def alarms(self) -> list[Finding]:
        """Findings without a reason that would wake somebody."""
        return [finding for finding in self.false if finding.severity != "info"]


def judge(program: Program, outcome: Outcome, rules: set[str]) -> Verdict:
    """Hold one program's findings against its label, as far as the rules exist."""
    found: dict[str, int] = {}
    false: dict[str, Finding] = {}
    for finding in outcome.findings:
        rule = finding.rule
        if rule in program.expects and finding.step >= program.onset:
            found.setdefault(rule, finding.step - program.onset)
        elif rule not in program.allows and (rule not in ADVICE or rule in program.expects):
            known = false.setdefault(rule, finding)
            false[rule] = known if known.severity != "info" else finding
    missed = [rule for rule in program.expects if rule in rules and rule not in found]
    return Verdict(program, outcome, found, missed, list(false.values()))


class Score(NamedTuple):
    """One rule over many programs, or all rules together."""

    rule: str
    expected: int
    found: int
    false: int
    steps: float | None  # median from the onset to the finding

    @property
    def recall(self) -> float | None:
        return self.found / self.expected if self.expected else None

    @property
    def precision(self) -> float | None:
        spoken = self.found + self.false
        return self.found / spoken if spoken else None


def scores(verdicts: list[Verdict]) -> list[Score]:
    """One for each rule that was expected or spoke falsely, then one for all."""
    rules = sorted({rule for v in verdicts for rule in [*v.found, *v.missed, *(f.rule for f in v.false)]})
    rows = [_score(rule, verdicts, {rule}) for rule in rules]
    return [*rows, _score("all", verdicts, set(rules))]


def _score(name: str, verdicts: list[Verdict], rules: set[str]) -> Score:
    steps = [taken for v in verdicts for rule, taken in v.found.items() if rule in rules]
    missed = sum(rule in rules for v in verdicts for rule in v.missed)
    false = sum(finding.rule in rules for v in verdicts for finding in v.false)
    return Score(name, len(steps) + missed, len(steps), false, median(steps) if steps else None)


def shortfalls(verdicts: list[Verdict]) -> list[str]:
    """The numbers of the zoo that are missed, each in a sentence; empty when all are kept."""
    short = []
    *each, together = scores(verdicts)
    for what, ratio in (("recall", together.recall), ("precision", together.precision)):
        if ratio is not None and ratio < AT_LEAST:
            short.append(f"{what} is {ratio:.3f}, below {AT_LEAST}")
    for verdict in verdicts:
        if verdict.program.is_healthy:
            short += [f"{verdict.program.name} is healthy, and {f.rule} says {f.severity}" for f in verdict.alarms]
    slow = [score for score in each if score.rule in PROMPT and score.steps is not None and score.steps > WITHIN_STEPS]
    return short + [f"{score.rule} needs {score.steps:g} steps, more than {WITHIN_STEPS}" for score in slow]
