"""What the HTTP server answers besides /metrics: a page for people, the runs as JSON, and health."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from gpuwatch.exporters.http import Handler, Response
from gpuwatch.state import recovery, summary
from gpuwatch.state.counters import PHASES
from gpuwatch.state.node_report import report

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from gpuwatch.exporters.request import Request
    from gpuwatch.selfstats import SelfStats
    from gpuwatch.state.node_report import NodeReport
    from gpuwatch.state.runs import Run
    from gpuwatch.state.store import State
    from gpuwatch.state.summary import RunSummary

HTML = "text/html; charset=utf-8"
JSON = "application/json"
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"})

_STYLE = b"""\
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; border-bottom: 1px solid #8884; }
th { font-weight: 600; } td.n, th.n { text-align: right; }
.live, .up { color: #1a7f37; } .lost, .failed, .down { color: #cf222e; }
@media (prefers-color-scheme: dark) { .live, .up { color: #3fb950; } .lost, .failed, .down { color: #f85149; } }
"""


def routes(
    state: State, stats: SelfStats, version: str, metrics: Handler, not_ready: Callable[[], str] = lambda: ""
) -> dict[str, Handler]:
    """Path -> handler. `not_ready` gives the reason why the daemon is not ready yet, or an empty string."""

    def ready(_: Request) -> Response:
        reason = not_ready()
        return Response(f"{reason}\n".encode(), status=503) if reason else Response(b"ready\n")

    return {
        "/": lambda _: Response(_page(state, stats, version), HTML),
        "/style.css": lambda _: Response(_STYLE, "text/css; charset=utf-8"),
        "/metrics": metrics,
        "/api/runs": lambda _: Response(msgspec.json.encode([summary.tree(run) for run in summaries(state)]), JSON),
        "/api/gpus": lambda _: Response(msgspec.json.encode(node(state)), JSON),
        "/-/healthy": lambda _: Response(b"healthy\n"),
        "/-/ready": ready,
    }


def summaries(state: State) -> list[RunSummary]:
    """Every run that the state holds, as run.json has it; values that are not finite are strings, since JSON has none."""
    with state.lock:
        now = time.time()
        return [recovery.summarize(run, state.findings.of_run(run.directory), now) for run in state.runs.values()]


def node(state: State) -> NodeReport:
    """The GPUs with their processes, and the host; each process with the run and rank that its hooks report."""
    with state.lock:
        ranks = {run.identity.pid: (run.name, str(run.rank)) for run in state.runs.values() if run.status == "live"}
        return report(state.gpus, state.host, ranks)


def _page(state: State, stats: SelfStats, version: str) -> bytes:
    with state.lock:
        runs = [_run_row(run) for run in state.runs.values()]
        findings = [(f.run, str(f.rank), f.rule, f.severity, str(f.step), f.summary) for f in state.findings.active.values()]
        gpus = [(gpu.label, gpu.info.get("name", ""), "up" if gpu.up else f"down: {gpu.reason}") for gpu in state.gpus]
    components = [(name, "up" if c.up else f"down: {c.last_error}") for name, c in sorted(stats.components().items())]
    board = f"<code>tensorboard --logdir {_text(state.logdir)} --samples_per_plugin scalars=1000000</code>"
    links = '<a href="metrics">metrics</a> for Prometheus, <a href="api/runs">runs</a> and <a href="api/gpus">GPUs</a> as JSON'
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>gpuwatch</title>",
        '<meta name=viewport content="width=device-width"><meta http-equiv=refresh content=5>',
        '<link rel=stylesheet href="style.css"><link rel=icon href="data:,">',
        f"<h1>gpuwatch {_text(version)}</h1>",
        f"<p>{links}. Curves, histograms and images are in TensorBoard: {board}</p>",
        _table(
            "Runs",
            ("run", "rank", "status", "step", "loss", "gradient norm", "steps/s", "busiest phase"),
            runs,
            {1, 3, 4, 5, 6},
        ),
        _table("Active findings", ("run", "rank", "rule", "severity", "step", "what"), findings, {1, 4}),
        _table("GPUs", ("gpu", "name", "state"), gpus),
        _table("Components of this daemon", ("component", "state"), components),
    ]
    return "\n".join(parts).encode("utf-8", "replace")


def _run_row(run: Run) -> tuple[str, ...]:
    step_seconds = run.values.get("step_seconds", 0.0)
    phase = max(PHASES, key=lambda name: run.counters.phase_seconds.get(name, 0.0))
    return (
        run.directory,
        str(run.rank),
        run.status,
        f"{run.last_step:,}",
        _number(run.values.get("loss")),
        _number(run.values.get("grad_norm")),
        _number(1 / step_seconds if step_seconds > 0 else None),
        phase if run.counters.phase_seconds else "",
    )


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], numeric: Container[int] = ()) -> str:
    if not rows:
        return f"<h2>{title}</h2><p>none</p>"
    head = "".join(f"<th{' class=n' if i in numeric else ''}>{_text(name)}</th>" for i, name in enumerate(columns))
    lines = []
    for row in rows:
        cells = "".join(f"<td{_class(i in numeric, cell)}>{_text(cell)}</td>" for i, cell in enumerate(row))
        lines.append(f"<tr>{cells}</tr>")
    return f"<h2>{title}</h2><table><tr>{head}</tr>{''.join(lines)}</table>"


def _class(numeric: bool, cell: str) -> str:
    word = cell.partition(":")[0]
    if word in ("live", "lost", "failed", "up", "down"):
        return f" class={word}"
    return " class=n" if numeric else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _text(text: str) -> str:
    return text.translate(_ENTITIES)
