"""What stands in a report, in the order in which a reader asks: is it well, how did it go, where, how fast, what next."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

from gpuwatch.advice.station import Station, phase_shares
from gpuwatch.history.measures import Measures
from gpuwatch.history.past import Past
from gpuwatch.report import precision
from gpuwatch.report.blocks import Alert, Block, Page, Picture, Section, Table, Text
from gpuwatch.report.chart import Line, Mark, line_chart
from gpuwatch.report.heat_map import heat_map
from gpuwatch.report.series import charts
from gpuwatch.state.findings import SEVERITIES, Finding
from gpuwatch.state.summary import RunSummary, size_in_words

_MAX_LAYERS = 160
_MAX_SCALARS = 12
_MIB = 1 << 20
#: wire.STEP_FIELDS drawn in the timeline: title -> (name in the legend, field) of each line.
_TIMELINE = {
    "Loss": (("loss", "loss"),),
    "Gradient norm": (("before clipping", "grad_norm"), ("after", "grad_norm_clipped")),
    "Update / weight": (("ratio", "update_ratio"),),
    "Weight norm": (("norm", "weight_norm"),),
    "Share of zeros in the gradient": (("share", "grad_zero_ratio"),),
}
_SPEED = {
    "Step duration (s)": (("step", "step_seconds"),),
    "Phases (s)": tuple((name, f"{name}_seconds") for name in ("data", "forward", "backward", "optimizer")),
}


def page(
    summaries: Sequence[RunSummary], statuses: Sequence[str], past: Past, measured: Measures, advice: list[Station]
) -> Page:
    """The report of one run: rank 0's past, and a line for each other rank."""
    first = summaries[0]
    findings = _episodes(past.findings)
    marks = [Mark(f.first_step, f.severity, f.rule) for f in findings]
    sections = [
        Section("Findings", tuple(_findings(findings))),
        Section("Timeline", (*charts(past, _TIMELINE, marks), *_rate(past, marks))),
        Section("Logged by the job", tuple(_logged(past))),
        Section("Layers", tuple(_layers(past))),
        Section("Speed", tuple(_speed(past, measured, marks))),
        Section("Precision", tuple(precision.blocks(past, measured, marks))),
        Section("Memory", tuple(_memory(past, marks))),
        Section("Ranks", tuple(_ranks(summaries, statuses))),
        Section("What next", tuple(_roadmap(advice))),
        Section("About this run", tuple(_about(first, past))),
    ]
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(first.started_wall_seconds))
    about = ", ".join(part for part in (first.hello.program, f"torch {first.hello.torch}", first.hello.device) if part)
    return Page(
        first.run,
        f"{statuses[0]}, started {started}, {about}",
        tuple(_tiles(first, measured, findings)),
        tuple(section for section in sections if section.blocks),
    )


def _episodes(findings: Sequence[Finding]) -> list[Finding]:
    """One entry an episode, as it was last known, the gravest first."""
    latest = {(f.rule, f.layer, f.first_step): f for f in findings}
    return sorted(latest.values(), key=lambda f: (-_gravity(f), f.first_step))


def _gravity(finding: Finding) -> int:
    return SEVERITIES.index(finding.severity) if finding.severity in SEVERITIES else -1


def _tiles(summary: RunSummary, measured: Measures, findings: Sequence[Finding]) -> Iterator[tuple[str, str]]:
    yield f"{summary.step:,}", "steps"
    if measured.steps_per_second is not None:
        yield f"{measured.steps_per_second:.3g}", "steps a second"
    if measured.train_loss is not None:
        yield f"{measured.train_loss.last:.4g}", "train loss"
    if measured.validation_accuracy is not None:
        yield f"{measured.validation_accuracy.last:.1%}", "validation accuracy"
    if measured.accuracy_gap is not None:
        yield f"{100 * measured.accuracy_gap:+.1f}", "points of accuracy gap"
    if measured.peak_memory_bytes is not None:
        yield f"{measured.peak_memory_bytes / _MIB:,.0f} MiB", "peak memory"
    yield measured.precision, "precision"
    yield str(len(findings)), "finding" if len(findings) == 1 else "findings"


def _findings(findings: Sequence[Finding]) -> Iterator[Block]:
    if not findings:
        yield Text("None: no rule saw anything wrong.")
    for f in findings:
        where = f" in {f.layer}" if f.layer else ""
        when = f"from step {f.first_step:,}" + (f" to {f.last_step:,}" if f.state == "closed" else ", still active at the end")
        yield Alert(f.severity, f"{f.rule}{where}, {when}", f.summary, f.action)


def _rate(past: Past, marks: Sequence[Mark]) -> Iterator[Block]:
    if svg := line_chart("Learning rate", [Line("rate", past.steps, past.learning_rates)], marks):
        yield Picture("learning-rate", "Learning rate (first group)", svg)


def _logged(past: Past) -> Iterator[Block]:
    for number, (tag, scalars) in enumerate(list(past.scalars.items())[:_MAX_SCALARS]):
        # The job numbers these as it likes (epochs, batches): marks of optimizer steps would lie on another axis.
        ordered = sorted(scalars, key=lambda scalar: scalar.step)
        svg = line_chart(tag, [Line(tag, [s.step for s in ordered], [s.value for s in ordered])])
        if svg and len(ordered) > 1:
            yield Picture(f"logged-{number}", tag, svg)
    if len(past.scalars) > _MAX_SCALARS:
        yield Text(f"{len(past.scalars) - _MAX_SCALARS} further tags are in TensorBoard.")


def _layers(past: Past) -> Iterator[Block]:
    samples = past.layers["gradient"]
    norms = samples.over_time("norm")
    shown = [index for index in sorted(norms) if any(v == v for v in norms[index])][:_MAX_LAYERS]  # noqa: PLR0124  # not NaN
    if svg := heat_map([past.tensor_name(i) for i in shown], samples.steps, [norms[i] for i in shown]):
        yield Picture("layers", "Gradient norm of each layer over the run", svg, wide=True)
    if len(norms) > _MAX_LAYERS:
        yield Text(f"The first {_MAX_LAYERS} of {len(norms):,} layers are shown.")
    last, weights, updates = samples.last(), past.layers["weight"].last(), past.layers["update"].last()
    if not last:
        return
    rows = tuple(
        (
            past.tensor_name(index),
            _cell(last[index].get("norm")),
            _cell(last[index].get("absmax")),
            _cell(last[index].get("zero_ratio"), "{:.1%}"),
            _cell(last[index].get("nonfinite_count"), "{:,.0f}"),
            _cell(weights.get(index, {}).get("norm")),
            _cell(_quotient(updates.get(index, {}).get("norm"), weights.get(index, {}).get("norm"))),
        )
        for index in shown
    )
    heading = ("layer", "gradient norm", "largest", "zeros", "not finite", "weight norm", "update / weight")
    yield Table(heading, rows, frozenset(range(1, 7)))


def _speed(past: Past, measured: Measures, marks: Sequence[Mark]) -> Iterator[Block]:
    if measured.steps_per_second is None:
        return
    text = f"Median step {1e3 / measured.steps_per_second:.3g} ms"
    if measured.step_seconds_quartiles is not None:
        low, high = measured.step_seconds_quartiles
        text += f", half of them between {1e3 * low:.3g} and {1e3 * high:.3g} ms"
    shares = phase_shares(past)
    if shares:
        text += "; " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()) + " of the time"
    hooks = [value for value in past.values("overhead_ratio") if math.isfinite(value)]
    if hooks:
        text += f". gpuwatch's own hooks took {hooks[-1]:.2%} of the step at the end"
    yield Text(text + ".")
    yield from charts(past, _SPEED, marks)


def _memory(past: Past, marks: Sequence[Mark]) -> Iterator[Block]:
    fields = (
        ("peak", "torch_allocated_peak_bytes"),
        ("allocated", "torch_allocated_bytes"),
        ("reserved", "torch_reserved_bytes"),
    )
    lines = []
    for name, field in fields:
        steps, values = past.series(field)
        if any(value > 0.0 for value in values):
            lines.append(Line(name, steps, [value / _MIB for value in values]))
    if svg := line_chart("torch's allocator (MiB)", lines, marks):
        yield Picture("memory", "torch's allocator (MiB)", svg)


def _ranks(summaries: Sequence[RunSummary], statuses: Sequence[str]) -> Iterator[Block]:
    if len(summaries) < 2:
        return
    rows = tuple(
        (str(s.rank), status, f"{s.step:,}", _cell(_finite(s.values.get("loss"))), _cell(_finite(s.values.get("step_seconds"))))
        for s, status in zip(summaries, statuses, strict=True)
    )
    yield Table(("rank", "status", "steps", "loss", "last step (s)"), rows, frozenset({2, 3, 4}))


def _roadmap(advice: list[Station]) -> Iterator[Block]:
    """A table of so much text would have columns of two words on a telephone."""
    for s in advice:
        gain = f"Gain ({s.gain.basis}): {s.gain.text}." if s.gain else ""
        told = f"Measured: {' '.join(s.evidence)}" if s.evidence else "Nothing was measured."
        yield Alert(s.standing, s.name, told, " ".join(part for part in (gain, s.action) if part))


def _about(summary: RunSummary, past: Past) -> Iterator[Block]:
    hello = summary.hello
    facts = {
        "program": hello.program,
        "Python": hello.python,
        "torch": hello.torch,
        "framework": hello.framework,
        "device": hello.device,
        "parameters": size_in_words(summary),
        **{name: str(value) for name, value in past.facts.items()},
    }
    yield Table(("fact", "value"), tuple((name, value) for name, value in facts.items() if value))
    lost = {reason: count for reason, count in summary.counters.dropped.items() if count}
    told = ", ".join(f"{count:,} {reason}" for reason, count in lost.items())
    damaged = f" {past.lost_bytes:,} damaged bytes of the journal were passed over." if past.lost_bytes else ""
    yield Text(f"{summary.counters.records:,} records; dropped: {told or 'none'}.{damaged}")


def _cell(value: float | None, form: str = "{:.3g}") -> str:
    return "-" if value is None or math.isnan(value) else form.format(value)


def _quotient(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _finite(value: float | str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None
