"""From judgements to episodes: one finding for as long as it lasts, whatever the series does in between."""

from __future__ import annotations

from collections import deque
from typing import Any

from gpuwatch.detectors.rule import AnyRule, Quiet, Verdict
from gpuwatch.state.findings import SEVERITIES, Finding


class Episode:
    """The hysteresis of one rule in one run."""

    def __init__(self, rule: AnyRule[Any]) -> None:
        self.finding: Finding | None = None  # the open one
        self._rule = rule
        self._recent: deque[tuple[int, Verdict | None]] = deque(maxlen=rule.open_within)
        self._quiet = 0

    def judge(self, step: int, judgement: Verdict | Quiet) -> Finding | None:
        """The finding when it has just opened, grown more severe, or closed; else None (an open one is kept up to date)."""
        if judgement is Quiet.UNMEASURED:
            return None
        verdict = judgement if isinstance(judgement, Verdict) else None
        if self.finding is not None:
            return self._go_on(self.finding, step, verdict)
        self._recent.append((step, verdict))
        if verdict is None:
            return None
        bad = [(at, seen) for at, seen in self._recent if seen is not None]
        if len(bad) < self._rule.open_after and not verdict.certain:
            return None
        self.finding = self._open(step, verdict, min(seen.first_step or at for at, seen in bad))
        return self.finding

    def end(self) -> Finding | None:
        """Close what is open: the run has ended."""
        finding, self.finding = self.finding, None
        if finding is not None:
            finding.state = "closed"
        self._recent.clear()
        self._quiet = 0
        return finding

    def _open(self, step: int, verdict: Verdict, first_step: int) -> Finding:
        self._quiet = 0
        return Finding(
            rule=self._rule.name,
            severity=verdict.severity or self._rule.severity,
            first_step=first_step,
            step=step,
            last_step=step,
            statistic=self._rule.statistic,
            value=verdict.value,
            threshold=verdict.threshold,
            summary=verdict.summary,
            action=self._rule.action,
            layer=verdict.layer,
        )

    def _go_on(self, finding: Finding, step: int, verdict: Verdict | None) -> Finding | None:
        if verdict is None:
            self._quiet += 1
            return self.end() if self._quiet >= self._rule.quiet_steps else None
        self._quiet = 0
        finding.last_step = step
        severity = verdict.severity or self._rule.severity
        if SEVERITIES.index(severity) <= SEVERITIES.index(finding.severity):
            return None
        finding.severity, finding.value, finding.threshold = severity, verdict.value, verdict.threshold
        finding.summary = verdict.summary
        return finding
