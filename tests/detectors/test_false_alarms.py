"""No rule raises a false alarm in healthy runs. `make healthy` plays 100,000 steps (GPUWATCH_HEALTHY_STEPS), CI fewer."""

from __future__ import annotations

import os
from collections import Counter

from gpuwatch.detectors.registry import RULES
from gpuwatch.detectors.rule import Quiet
from tests.detectors import healthy_runs

STEPS = int(os.environ.get("GPUWATCH_HEALTHY_STEPS", "9000"))
#: Notes that are true of a healthy run: it has come down as far as it will.
TRUE_NOTES = {"loss_plateau"}


def test_no_rule_cries_wolf() -> None:
    alarms = Counter()
    for name, run in healthy_runs.play(STEPS, 1500 if STEPS < 50_000 else 8000):
        for finding in run.simulation.opened:
            if finding.rule not in TRUE_NOTES or finding.severity != "info":
                alarms[f"{finding.rule} ({finding.severity}) in {name} at step {finding.step}: {finding.summary}"] += 1
        assert run.simulation.engine.faults == {}
    assert not alarms, "\n".join(alarms)


def test_the_runs_are_no_empty_proof() -> None:
    """Each rule has judged these runs: it said "fine", and not only that a step says nothing about it."""
    judged = Counter()
    for kind in healthy_runs.KINDS:
        run = kind(1)
        run.step()
        watch = run.simulation.engine._watches["sim"]
        for rule, _ in (*watch._rules, *watch._moment_rules):
            rule.judge = _counting(rule.judge, rule.name, judged)
        for _ in range(620):
            run.step()
    silent = {rule.name for rule in RULES if not judged[rule.name]}
    assert silent == {"gpu_idle", "amp_no_speedup"}, "one looks at five minutes and more, the other at a probe that nobody ran"


def _counting(judge, name, judged):
    def counted(view):
        found = judge(view)
        judged[name] += found is Quiet.FINE
        return found

    return counted
