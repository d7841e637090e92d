"""The zoo's result as Markdown and as JSON."""

from __future__ import annotations

from pathlib import Path

from tests.bench.harness import machine, machine_line, markdown
from tests.zoo.score import Score, Verdict, scores, shortfalls

#: Between these lines a document has the tables.
BEGIN, END = "<!-- made by make zoo -->", "<!-- end of what make zoo makes -->"


def report(verdicts: list[Verdict], rules: set[str]) -> str:
    """Both halves apart, then every miss and false alarm by name."""
    parts = [machine_line(machine(("torch",))), ""]
    for half in sorted({verdict.program.half for verdict in verdicts}):
        chosen = [verdict for verdict in verdicts if verdict.program.half == half]
        healthy = sum(verdict.program.is_healthy for verdict in chosen)
        steps = sum(verdict.outcome.steps for verdict in chosen)
        title = f"### Half {half}: {healthy} healthy programs, {len(chosen) - healthy} broken ones, {steps:,} steps"
        parts += [title, "", _table(scores(chosen)), "", *_named(chosen), ""]
    unjudged = sorted({rule for v in verdicts for rule in v.program.expects if rule not in rules})
    if unjudged:
        parts += [f"Expected of rules that do not exist yet: {', '.join(unjudged)}.", ""]
    return "\n".join(parts).rstrip()


def document(verdicts: list[Verdict], rules: set[str]) -> dict:
    """The same for machines."""
    halves = {}
    for half in sorted({verdict.program.half for verdict in verdicts}):
        chosen = [verdict for verdict in verdicts if verdict.program.half == half]
        halves[half] = [{**s._asdict(), "recall": s.recall, "precision": s.precision} for s in scores(chosen)]
    programs = [
        {
            "name": v.program.name,
            "half": v.program.half,
            "fault": v.program.fault,
            "expects": v.program.expects,
            "onset": v.program.onset,
            "steps": v.outcome.steps,
            "seconds": round(v.outcome.seconds, 2),
            "found": v.found,
            "missed": v.missed,
            "false": [[f.rule, f.severity, f.step, f.summary] for f in v.false],
            "findings": [[f.rule, f.severity, f.step, f.first_step, f.last_step, f.summary] for f in v.outcome.findings],
        }
        for v in verdicts
    ]
    return {
        "machine": machine_line(machine(("torch",))),
        "scores": halves,
        "programs": programs,
        "missed": shortfalls(verdicts),
    }


def replace_table(file: Path, tables: str) -> None:
    """Put `tables` between the two marks in `file`; a file without them becomes the tables."""
    text = file.read_text() if file.exists() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    file.write_text(f"{before}{begin}\n\n{tables}\n\n{end}{after}" if end else f"{tables}\n")


def _table(rows: list[Score]) -> str:
    return markdown(
        ("rule", "faults", "found", "recall", "false", "precision", "median steps to find"), [_cells(row) for row in rows]
    )


def _cells(score: Score) -> tuple[str, ...]:
    recall = "" if score.recall is None else f"{score.recall:.2f}"
    precision = "" if score.precision is None else f"{score.precision:.2f}"
    steps = "" if score.steps is None else f"{score.steps:g}"
    return score.rule, str(score.expected), str(score.found), recall, str(score.false), precision, steps


def _named(verdicts: list[Verdict]) -> list[str]:
    lines = []
    for verdict in verdicts:
        program = verdict.program
        kind = "healthy" if program.is_healthy else f"broken at step {program.onset}: {program.fault}"
        lines += [f"- missed: {rule} in `{program.name}` ({kind})" for rule in verdict.missed]
        for finding in verdict.false:
            lines.append(f"- false ({finding.severity}): {finding.rule} in `{program.name}` ({kind}): {finding.summary}")
    return lines or ["Nothing missed, nothing false."]
