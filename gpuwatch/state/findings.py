"""Findings: what the detectors concluded, open and closed, and how often each rule has fired."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec

SEVERITIES = ("info", "warning", "critical")
#: Closed findings kept in memory for one daemon; all of them are in the journals of their runs.
MAX_CLOSED = 1000


class Finding(msgspec.Struct):
    """One episode of one rule. `value` and `threshold` are of `statistic`, in its own unit."""

    rule: str
    severity: str  # one of SEVERITIES
    first_step: int  # where the episode began
    step: int  # where the rule was sure of it: the alert's step
    last_step: int  # the last step that still belonged to it
    statistic: str
    value: float
    threshold: float
    summary: str  # one sentence: what is wrong, with the numbers
    action: str  # one sentence: what to do about it
    layer: str = ""  # parameter name; "" when it concerns the whole run
    state: str = "active"  # active | closed
    run: str = ""  # Run.name; filled in by the book
    rank: int = 0
    directory: str = ""  # Run.directory, which tells attempts apart
    time: float = 0.0  # wall time of `step`, seconds since the epoch


def gravest(found: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Of (rule, severity) pairs each rule with its gravest severity, the gravest first."""
    ranked = sorted(found, key=lambda item: SEVERITIES.index(item[1]))
    return dict(sorted(dict(ranked).items(), key=lambda item: -SEVERITIES.index(item[1])))


class FindingBook:
    """All findings of the daemon. A key (directory, rule, layer) has at most one active finding."""

    def __init__(self) -> None:
        self.active: dict[tuple[str, str, str], Finding] = {}
        self.closed: deque[Finding] = deque(maxlen=MAX_CLOSED)

    def update(self, finding: Finding) -> bool:
        """Take in a finding as it is now: opened, changed or closed. True when it has just been opened."""
        key = _key(finding)
        known = key in self.active
        if finding.state != "closed":
            self.active[key] = finding
            return not known
        if known:
            del self.active[key]
            self.closed.append(finding)
        return False

    def restore(self, finding: Finding) -> None:
        """A finding from before a restart, closed: the detectors have forgotten it, and find it again should it last."""
        finding.state = "closed"
        same = (_key(finding), finding.step)
        kept = [known for known in self.closed if (_key(known), known.step) != same]
        self.closed = deque([*kept, finding], maxlen=MAX_CLOSED)

    def of_run(self, directory: str) -> list[Finding]:
        """Every finding kept of one run, oldest first."""
        found = [finding for finding in self.closed if finding.directory == directory]
        found += [finding for finding in self.active.values() if finding.directory == directory]
        return sorted(found, key=lambda finding: finding.step)

    def forget(self, directory: str) -> None:
        """Drop what is known of a run that the state no longer holds."""
        self.active = {key: finding for key, finding in self.active.items() if finding.directory != directory}
        self.closed = deque((finding for finding in self.closed if finding.directory != directory), maxlen=MAX_CLOSED)


def _key(finding: Finding) -> tuple[str, str, str]:
    return finding.directory, finding.rule, finding.layer
