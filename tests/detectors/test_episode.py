"""Hysteresis: one finding an episode, from its first bad step to twenty quiet ones."""

from __future__ import annotations

from gpuwatch.detectors.episode import Episode
from gpuwatch.detectors.rule import Quiet, Rule, Thresholds, Verdict
from gpuwatch.detectors.sample import Sample


class Scripted(Rule[Thresholds]):
    name = "scripted"
    severity = "warning"
    statistic = "nothing"
    action = "Nothing."
    open_after = 2
    open_within = 4
    quiet_steps = 3

    def judge(self, sample: Sample) -> Verdict | Quiet:
        raise AssertionError(sample)


BAD = Verdict(2.0, 1.0, "bad")


def play(script: str, **verdicts: Verdict) -> tuple[Episode, list[tuple[int, str]]]:
    """`script`: x bad, . fine, ? not measured, other letters from `verdicts`. What was reported: (step, state)."""
    episode = Episode(Scripted(Thresholds()))
    changes = []
    for step, letter in enumerate(script, 1):
        judgement = {"x": BAD, ".": Quiet.FINE, "?": Quiet.UNMEASURED, **verdicts}[letter]
        finding = episode.judge(step, judgement)
        if finding is not None:
            changes.append((step, finding.state))
    return episode, changes


def test_it_opens_when_enough_of_the_last_steps_are_bad() -> None:
    assert play("x...x...x...")[1] == []
    episode, changes = play("..x..x")
    assert changes == [(6, "active")]
    assert episode.finding is not None
    assert (episode.finding.first_step, episode.finding.step) == (3, 6)


def test_it_closes_after_enough_quiet_steps_and_opens_anew() -> None:
    episode, changes = play("xx..x...xx...")
    assert changes == [(2, "active"), (8, "closed"), (10, "active"), (13, "closed")]
    assert episode.finding is None


def test_steps_that_were_not_measured_count_for_nothing() -> None:
    assert play("x????????x")[1] == [(10, "active")]
    assert play("xx..????")[1] == [(2, "active")]


def test_it_follows_its_last_step() -> None:
    episode, _ = play("xx.x.x")
    assert episode.finding is not None
    assert (episode.finding.step, episode.finding.last_step) == (2, 6)


def test_it_reports_that_it_grew_worse_and_not_that_it_grew_better() -> None:
    worse = Verdict(9.0, 1.0, "worse", severity="critical")
    better = Verdict(1.1, 1.0, "better", severity="info")
    episode, changes = play("xxcbx", c=worse, b=better)
    assert changes == [(2, "active"), (3, "active")]
    assert episode.finding is not None
    assert (episode.finding.severity, episode.finding.value, episode.finding.summary) == ("critical", 9.0, "worse")


def test_a_certain_verdict_opens_by_itself() -> None:
    assert play("..c", c=Verdict(9.0, 1.0, "certain", certain=True))[1] == [(3, "active")]


def test_the_rule_may_know_that_it_began_earlier() -> None:
    episode, _ = play("...xe", e=Verdict(1.0, 1.0, "e", first_step=2))
    assert episode.finding is not None
    assert episode.finding.first_step == 2


def test_the_end_of_the_run_closes_it() -> None:
    episode, _ = play("xx")
    finding = episode.end()
    assert finding is not None
    assert finding.state == "closed"
    assert episode.end() is None
