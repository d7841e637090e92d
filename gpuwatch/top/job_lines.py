"""The training jobs as a table: one row for each run, its ranks taken together, and under it what is wrong with it now."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from gpuwatch.state.counters import PHASES
from gpuwatch.top.lines import Line, Segment, cut, fitted, padded
from gpuwatch.top.plot import split_bar
from gpuwatch.top.quantities import MISSING, number, percent

if TYPE_CHECKING:
    from gpuwatch.state.findings import Finding
    from gpuwatch.top.reading import Job, Reading

FILLS = {"data": "░", "forward": "▒", "backward": "▓", "optimizer": "█", "other": "·"}
SEVERITY_STYLES = {"critical": "bold red", "warning": "bold yellow", "info": "cyan"}
HEAD_STYLE = "bold reverse"
STATUS_STYLES = {"live": "green", "finished": "dim", "failed": "red", "lost": "red"}
#: A run that has ended stays in view for this long, so that its end is seen.
ENDED_SECONDS = 300.0
_SEVEREST = ("critical", "warning", "info")
_NARROWEST_NAME, _PHASE_CELLS = 12, 12


def shown(reading: Reading) -> list[list[Job]]:
    """Runs as lists of their ranks (newest attempts): the live ones, then those that ended lately, newest first."""
    ranks: dict[str, dict[int, Job]] = {}
    for job in sorted(reading.jobs, key=lambda job: (job.summary.attempt, job.summary.started_wall_seconds)):
        ranks.setdefault(job.summary.run, {})[job.summary.rank] = job
    now = reading.node.wall_seconds
    runs = [[of_run[rank] for rank in sorted(of_run)] for of_run in ranks.values()]
    recent = [run for run in runs if _is_live(run) or now - _updated(run) < ENDED_SECONDS]
    return sorted(recent, key=lambda run: (not _is_live(run), -max(job.summary.started_wall_seconds for job in run)))


def lines(reading: Reading, width: int) -> list[Line]:
    """The table with its head; one line that says so when there is no run."""
    runs = shown(reading)
    if not runs:
        return [cut([Segment("no training job; start one with: gpuwatch run -- python train.py", "dim")], width)]
    table = [_cells(run, reading) for run in runs]
    head = {name: Segment(name, HEAD_STYLE) for name in table[0]}
    widths = {name: max(len(row[name].text) for row in [head, *table]) for name in head}
    others = sum(widths.values()) - widths["RUN"] + 2 * len(widths)
    widths["RUN"] = min(widths["RUN"], max(_NARROWEST_NAME, width - others))
    found: list[Line] = [_head(_row(head, widths, width), width)]
    for run, cells in zip(runs, table, strict=True):
        found.append(_row(cells, widths, width))
        found += [cut(line, width) for line in _findings(run)]
    return found


def active(run: list[Job]) -> list[tuple[Finding, int]]:
    """The open findings of live ranks, severest first, each rule and layer once: with how many ranks have it."""
    open_findings = [
        finding for job in run if job.status == "live" for finding in job.summary.findings if finding.state == "active"
    ]
    times = Counter((finding.rule, finding.layer) for finding in open_findings)
    first = {(finding.rule, finding.layer): finding for finding in reversed(open_findings)}
    return sorted(
        ((finding, times[key]) for key, finding in first.items()),
        key=lambda item: (_SEVEREST.index(item[0].severity), item[0].first_step),
    )


def closed(run: list[Job]) -> Counter[str]:
    """How often each rule spoke in live ranks and is over: a run that has exploded may look well since."""
    return Counter(
        finding.rule for job in run if job.status == "live" for finding in job.summary.findings if finding.state != "active"
    )


def phase_shares(job: Job) -> dict[str, float]:
    """Shares of the run's time in data, forward, backward, optimizer and other; empty when they are not known."""
    seconds = job.summary.counters.phase_seconds
    total = sum(seconds.values())
    return {phase: seconds.get(phase, 0.0) / total for phase in PHASES} if total > 0 else {}


def gpus_of(run: list[Job], reading: Reading) -> list[str]:
    """Labels of the GPUs on which the driver lists the run's processes."""
    pids = {job.summary.identity.pid for job in run if job.status == "live"}
    return [gpu.gpu for gpu in reading.node.gpus if any(process.pid in pids for process in gpu.processes)]


#: Column -> its place in the order in which columns give way on a narrow screen.
_WEIGHTS = {
    "RUN": 0, "STATUS": 1, "STEP": 1, "STEP/S": 1, "LOSS": 1, "GRAD": 2, "SCALE": 3, "GPU": 5, "RANKS": 6, "PHASES": 4,
    "DATA": 7, "LOST": 8,
}  # fmt: skip
_RIGHT = {"STEP", "STEP/S", "LOSS", "GRAD", "SCALE", "DATA", "LOST"}


def _cells(run: list[Job], reading: Reading) -> dict[str, Segment]:
    """Values of the lowest rank; the status is the worst of all."""
    first = run[0]
    status = next(name for name in ("failed", "lost", "live", "finished") if any(job.status == name for job in run))
    shares = phase_shares(first)
    loss, norm = first.value("loss"), first.value("grad_norm")
    dropped = sum(sum(job.summary.counters.dropped.values()) for job in run)
    return {
        "RUN": Segment(first.summary.run, "bold"),
        "STATUS": Segment(status, STATUS_STYLES[status]),
        "STEP": Segment(f"{first.summary.step:,}"),
        "STEP/S": Segment(number(first.steps_per_second) if first.status == "live" else MISSING),
        "LOSS": Segment(number(loss), _alarming(loss)),
        "GRAD": Segment(number(norm), _alarming(norm)),
        "SCALE": Segment(number(first.value("loss_scale"))),
        "PHASES": Segment(split_bar([(share, FILLS[name]) for name, share in shares.items()], _PHASE_CELLS) if shares else ""),
        "DATA": Segment(percent(shares.get("data"))),
        "GPU": Segment(",".join(gpus_of(run, reading)) or MISSING),
        "RANKS": Segment(str(first.summary.world_size)),
        "LOST": Segment(number(dropped)),
    }


def _row(cells: dict[str, Segment], widths: dict[str, int], width: int) -> Line:
    parts = []
    for name, cell in cells.items():
        room = widths[name]
        text = cell.text if len(cell.text) <= room else cell.text[: room - 1] + "…"
        parts.append((_WEIGHTS[name], [Segment(text.rjust(room) if name in _RIGHT else text.ljust(room), cell.style)]))
    return fitted(parts, width)


def _head(headings: Line, width: int) -> Line:
    """With what the fills of the phase bar stand for, where there is room."""
    legend = [Segment(" ".join(f"{fill} {name}" for name, fill in FILLS.items()), "dim")]
    line = fitted([(0, headings), (1, legend)], width, gap="   ")
    return [Segment(text, HEAD_STYLE) for text, _ in padded(line, width)]


def _findings(run: list[Job]) -> list[Line]:
    found: list[Line] = []
    for finding, ranks in active(run):
        layer = f" in {finding.layer}" if finding.layer else ""
        where = f" ({ranks} ranks)" if ranks > 1 else ""
        style = SEVERITY_STYLES.get(finding.severity, "")
        told = f" from step {finding.first_step:,}{where}: {finding.summary}"
        found.append([Segment("  ! ", style), Segment(f"{finding.rule}{layer}", style), Segment(told)])
    if before := closed(run):
        told = ", ".join(f"{rule} ({times} times)" if times > 1 else rule for rule, times in before.items())
        found.append([Segment(f"    found before, and over: {told}", "dim")])
    return found


def _alarming(value: float | None) -> str:
    return "" if value is None or math.isfinite(value) else "bold red"


def _is_live(run: list[Job]) -> bool:
    return any(job.status == "live" for job in run)


def _updated(run: list[Job]) -> float:
    return max(job.summary.updated_wall_seconds for job in run)
