"""The health card of `gpuwatch status`: what run.json knows of one run, as lines for a terminal."""

from __future__ import annotations

import math
import shutil
import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from gpuwatch_hooks import wire

from gpuwatch.cli import standing
from gpuwatch.cli.runs import STATUS_COLOURS
from gpuwatch.cli.terminal import (
    bar,
    dim,
    number,
    paint,
    quantity_of_bytes,
    quantity_of_seconds,
    sparkline,
)
from gpuwatch.state import summary
from gpuwatch.state.counters import PHASES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gpuwatch.cli.recorded import Recorded
    from gpuwatch.state.findings import Finding
    from gpuwatch.state.summary import RunSummary

_FILLS = {"data": "░", "forward": "▒", "backward": "▓", "optimizer": "█", "other": "·"}
_SEVERITY_COLOURS = {"critical": "red", "warning": "yellow", "info": "cyan"}
_ORDER = {"critical": 0, "warning": 1, "info": 2}
_CLOSED_SHOWN = 8
_WIDTH = 120
_WIDE = 100  # from here on curves have forty cells
_NOT_KEPT = "NOT KEPT"
_FIXED_BLANK = "\N{NO-BREAK SPACE}"


def lines(ranks: list[Recorded]) -> Iterator[str]:
    """The card of the first rank, a line for each other one, and the findings of all."""
    first = ranks[0]
    yield from _head(first)
    for label, text in _rows(first):
        yield from _row(label, text, "red" if label == _NOT_KEPT else "")
    for rank in ranks[1:]:
        yield from _row(f"rank {rank.summary.rank}", _one_line(rank), STATUS_COLOURS[rank.status])
    yield from _findings(ranks)


def _row(label: str, text: str, colour: str = "") -> Iterator[str]:
    """A label and what it says, in as many lines as the terminal asks for."""
    folded = textwrap.wrap(text, _width() - 13, break_long_words=False, break_on_hyphens=False, replace_whitespace=False)
    for index, line in enumerate(folded):
        beside = " " * 13 if index else f"  {dim(label.ljust(11))}"
        yield beside + paint(line.replace(_FIXED_BLANK, " "), colour)


def _head(rank: Recorded) -> Iterator[str]:
    known = rank.summary
    status = paint(standing.whole(rank), STATUS_COLOURS[rank.status], bold=True)
    ranks = f", rank {known.rank} of {known.world_size}" if known.world_size > 1 else ""
    name = paint(known.run, "", bold=True)
    first = f"{known.run}  {standing.whole(rank)}{ranks}  "
    progress = f"step {known.step:,}{_rate(rank)}, {quantity_of_seconds(rank.lasted_seconds)}"
    if len(first) + len(progress) <= _width():
        yield f"{name}  {status}{ranks}  {progress}"
    else:
        yield f"{name}  {status}{ranks}"
        yield f"  {progress}"
    if old := standing.age(rank):
        yield "  " + paint(old, "yellow")
    hello = known.hello
    about = [
        hello.program,
        f"Python {hello.python}" if hello.python else "",
        f"torch {hello.torch}" if hello.torch else "",
        hello.device,
        framework if (framework := str(known.facts.get("framework") or hello.framework)) != "torch" else "",
        _precision(known),
        summary.size_in_words(known),
    ]
    text = ", ".join(part for part in about if part)
    yield from map(dim, textwrap.wrap(text, _width(), initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))


def _precision(known: RunSummary) -> str:
    told = str(known.facts.get("precision", ""))
    index = int(summary.number(known.values.get("autocast_dtype", 0.0)))
    return told or (f"autocast to {wire.AUTOCAST_DTYPES[index]}" if 0 < index < len(wire.AUTOCAST_DTYPES) else "")


def _rate(rank: Recorded) -> str:
    rate = rank.steps_per_second
    return f", {rate:.3g} steps/s ({quantity_of_seconds(1 / rate)} a step)" if rate else ""


def _rows(rank: Recorded) -> Iterator[tuple[str, str]]:
    known = rank.summary
    if why := standing.shortfall(known.step, known.kept_step, known.trouble, known.counters.dropped.get("journal", 0)):
        yield _NOT_KEPT, why
    values = {name: summary.number(value) for name, value in known.values.items()}
    curves = known.checkpoint.courses if known.checkpoint is not None else {}
    drawn = {name: course.means() for name, course in curves.items()}
    if "loss" in values:
        yield "loss", f"{_spark(drawn.get('loss', []))} {number(values['loss'])}"
    if "grad_norm" in values:
        yield "gradient", f"{_spark(drawn.get('grad_norm', []))} {_gradient(values)}"
    if first := [course.first_step for course in curves.values() if course.counts]:
        yield "", f"curves: steps {min(first):,} to {known.step:,}"
    if known.learning_rates:
        rates = dict.fromkeys(number(summary.number(rate)) for rate in known.learning_rates)
        yield "lr", ", ".join(list(rates)[:6]) + _update(values)
    if "loss_scale" in values:
        backoffs = _times(known.counters.loss_scale_backoffs, "back-off")
        skipped = _times(known.counters.skipped_steps, "skipped step")
        lost = values.get("grad_underflow_ratio", math.nan)
        underflow = f", fp16 loses {lost:.2%} of the gradient" if math.isfinite(lost) else ""
        yield "loss scale", f"{values['loss_scale']:g}, {backoffs}, {skipped}{underflow}"
    if any(known.counters.phase_seconds.values()):
        yield from _phases(known.counters.phase_seconds)
    yield from _memory(rank, values)
    yield "hooks", _hooks(rank, values)
    for tag, (step, value) in list(known.scalars.items())[:8]:
        yield "logged", f"{tag} {number(summary.number(value))} at step {step:,}"


def _spark(series: Sequence[float | None]) -> str:
    """A curve in a column of its own, narrower where the terminal is; a blank that is no place to fold a line."""
    width = 40 if _width() >= _WIDE else 24
    return f"{sparkline(series, width):<{width}}".replace(" ", _FIXED_BLANK)


def _gradient(values: dict[str, float]) -> str:
    text = number(values["grad_norm"])
    clipped = values.get("grad_norm_clipped")
    if clipped is not None and number(clipped) == text:
        text += ", below the clipping threshold"
    elif clipped is not None:
        text += f" before clipping, {number(values['grad_norm_clipped'])} after"
    if values.get("grad_nonfinite_count", 0) > 0:
        text += f", {values['grad_nonfinite_count']:,.0f} entries not finite"
    return text


def _update(values: dict[str, float]) -> str:
    return f", update/weight {number(values['update_ratio'])}" if "update_ratio" in values else ""


def _phases(seconds: dict[str, float]) -> Iterator[tuple[str, str]]:
    total = sum(seconds.values())
    shares = [(name, seconds.get(name, 0.0) / total) for name in PHASES]
    yield "phases", bar([(share, _FILLS[name]) for name, share in shares])
    yield "", "  ".join(f"{_FILLS[name]} {name} {share:.0%}" for name, share in shares)


def _memory(rank: Recorded, values: dict[str, float]) -> Iterator[tuple[str, str]]:
    parts = [
        f"{quantity_of_bytes(values[field])} {what}"
        for field, what in (
            ("torch_allocated_bytes", "allocated by torch"),
            ("torch_allocated_peak_bytes", "at the peak"),
            ("torch_reserved_bytes", "reserved"),
        )
        if values.get(field, 0) > 0
    ]
    resident = _resident_bytes(rank.summary.identity.pid) if rank.status == "live" else None
    if resident:
        parts.append(f"{quantity_of_bytes(resident)} resident on the host")
    if parts:
        yield "memory", ", ".join(parts)


def _resident_bytes(pid: int) -> int | None:
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _hooks(rank: Recorded, values: dict[str, float]) -> str:
    counters = rank.summary.counters
    parts = []
    if "overhead_ratio" in values:
        parts.append(f"{values['overhead_ratio']:.2%} of the step time")
    level = int(values.get("thinning_level", 0))
    if 0 < level < len(wire.THINNING):
        parts.append(f"thinned: {', '.join(wire.THINNING[1 : level + 1])}")
    lost = {reason: count for reason, count in counters.dropped.items() if count}
    prefix = "outbox_dropped_"  # what the hooks' own queue for logged data had to drop: they tell it as facts
    for name, count in rank.summary.facts.items():
        if name.startswith(prefix) and isinstance(count, int) and count:
            lost[name.removeprefix(prefix)] = count
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in lost.items())
    parts.append(f"{counters.records:,} records, " + (f"dropped: {dropped}" if lost else "none dropped"))
    if kernel := rank.summary.facts.get("kernel"):
        reason = rank.summary.facts.get("kernel_reason") if kernel == "foreach" else ""
        parts.append(f"kernel {kernel}" + (f" ({reason})" if reason else ""))
    return ", ".join(parts)


def _one_line(rank: Recorded) -> str:
    known = rank.summary
    loss = f", loss {number(summary.number(known.values['loss']))}" if "loss" in known.values else ""
    return f"{standing.whole(rank)}  step {known.step:,}{_rate(rank)}{loss}"


def _findings(ranks: list[Recorded]) -> Iterator[str]:
    findings = sorted((f for rank in ranks for f in rank.summary.findings), key=lambda f: f.step)
    active = [finding for finding in findings if finding.state == "active"]
    label = "  " + dim("findings".ljust(11))
    if not findings:
        yield label + paint("none", "green")
        return
    if any(rank.status == "live" for rank in ranks):
        yield label + f"{len(active)} active, {len(findings) - len(active)} closed"
        closed = [finding for finding in findings if finding.state != "active"][-_CLOSED_SHOWN:]
        active.sort(key=lambda f: _ORDER.get(f.severity, 3))
    else:
        yield label + str(len(findings))
        active, closed = sorted(findings, key=lambda f: f.severity == "info"), []  # in time: what came first is the cause
    times = Counter((finding.rule, finding.layer) for finding in active)
    for finding in active:
        if count := times.pop((finding.rule, finding.layer), 0):
            yield from finding_lines(finding, count)
    for finding in closed:
        steps = f"steps {finding.first_step:,} to {finding.last_step:,}"
        yield "    " + dim(f"closed    {finding.rule}, {steps}: {finding.summary}")


def finding_lines(finding: Finding, count: int = 1) -> Iterator[str]:
    """A finding as a paragraph: what is wrong since when, how often, and what to do."""
    severity = finding.severity.ljust(8)
    layer = f" in {finding.layer}" if finding.layer else ""
    again = f" (the first of {count})" if count > 1 else ""
    told = f"{severity}  {finding.rule}{layer}, from step {finding.first_step:,}{again}: {finding.summary}"
    first, *others = _wrapped(told)
    yield first.replace(severity, paint(severity, _SEVERITY_COLOURS.get(finding.severity, ""), bold=True), 1)
    yield from others
    yield from map(dim, _wrapped(" " * 10 + finding.action) if finding.action else [])


def _width() -> int:
    return max(40, min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _width(), initial_indent=" " * 4, subsequent_indent=" " * 14, drop_whitespace=True)


def _times(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
