"""Judges recorded runs again, by the rules as they are now: a minute of training is read back in a second.

Rules of the moment (clock, ranks, host) need the time itself: of those the findings stay as they were recorded.
"""

import heapq
from collections.abc import Iterator
from pathlib import Path

from gpuwatch.detectors.engine import Engine
from gpuwatch.detectors.registry import BY_NAME
from gpuwatch.detectors.rule import MomentRule
from gpuwatch.state.directories import RunDirectory
from gpuwatch.state.findings import Finding
from gpuwatch.state.frames import Frame
from gpuwatch.state.identity import Hello, Identity
from gpuwatch.state.journal_reader import JournalReader
from gpuwatch.state.runs import Run
from tests.zoo.keeper import RULES


def replay(folder: Path) -> list[Finding]:
    """The findings of a program's runs (one a rank), whose records are shown to one engine in the order of their time."""
    engine = Engine(RULES)
    runs: dict[str, Run] = {}
    found: dict[int, Finding] = {}
    journals = [(str(path.parent), path) for path in sorted(folder.rglob("journal"))]
    frames = heapq.merge(*(_frames(*journal) for journal in journals), key=lambda item: item[1].monotonic_ns)
    for directory, frame in frames:
        record = frame.decode()
        if isinstance(record, Hello):
            if directory not in runs:
                place = RunDirectory(directory, directory, -1, 1, resumed=False)
                runs[directory] = Run(record, Identity(0, len(runs) + 1, 1), place, 0.0)
        elif isinstance(record, Finding):
            if record.rule in BY_NAME and issubclass(BY_NAME[record.rule], MomentRule) and record.state == "closed":
                found[id(record)] = record
        else:
            run = runs[directory]
            for step in run.observe(record):
                for finding in engine.observe(run, step):
                    found[id(finding)] = finding
                    finding.rank = run.rank
    for run in runs.values():
        engine.end(run)
    return sorted(found.values(), key=lambda finding: (finding.step, finding.rule))


def _frames(directory: str, journal: Path) -> Iterator[tuple[str, Frame]]:
    reader = JournalReader(journal)
    while entries := reader.read():
        for entry in entries:
            yield directory, entry.frame
    reader.close()
