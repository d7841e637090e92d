"""What the HTTP server answers besides /metrics: the web page and what it shows, the node and its runs as JSON, health."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from gpuwatch.exporters import run_page, web_files
from gpuwatch.exporters.gpu_window import GpuWindow
from gpuwatch.exporters.http import EVENT_STREAM, Handler, Response
from gpuwatch.exporters.live import Live
from gpuwatch.state import recovery, summary
from gpuwatch.state.node_report import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gpuwatch.exporters.request import Request
    from gpuwatch.selfstats import SelfStats
    from gpuwatch.state.node_report import NodeReport
    from gpuwatch.state.store import State
    from gpuwatch.state.summary import RunSummary

JSON = "application/json"
MARKDOWN = "text/markdown; charset=utf-8"
_NOT_HERE = Response(b"this daemon holds no such run or layer\n", status=404)


class Pages:
    """Everything for people. `turn` is to be called about once a second, by the thread that answers: it feeds the curves."""

    def __init__(self, state: State, stats: SelfStats, version: str) -> None:
        self._state = state
        self.live = Live(state, stats, version)
        self.window = GpuWindow()

    def turn(self) -> None:
        with self._state.lock:
            self.window.sample(self._state.gpus, time.time())

    def routes(
        self,
        metrics: Handler,
        rules: Iterable[str] = (),
        rule_page: Callable[[str], str] = str,
    ) -> dict[str, Handler]:
        """Path -> handler. `rule_page` gives the Markdown of one of `rules`."""
        state, live = self._state, self.live

        def rule(name: str) -> Handler:
            return lambda _: Response(rule_page(name).encode(), MARKDOWN)

        return {
            **web_files.routes(),
            **{f"/rules/{name}": rule(name) for name in rules},
            "/metrics": metrics,
            "/api/live": lambda _: Response(live.snapshot(), JSON),
            "/api/events": lambda _: Response(live.event(), EVENT_STREAM, events=live.event),
            "/api/window": lambda _: Response(msgspec.json.encode(self.window.curves()), JSON),
            "/api/run": lambda request: _of_run(run_page.curves(state, _asked(request, "run"), _number(request, "after"))),
            "/api/layers": lambda request: _of_run(run_page.table(state, _asked(request, "run"))),
            "/api/histogram": lambda request: _of_run(
                run_page.histogram(state, _asked(request, "run"), _number(request, "layer"))
            ),
            "/api/runs": lambda _: Response(msgspec.json.encode([summary.tree(run) for run in summaries(state)]), JSON),
            "/api/gpus": lambda _: Response(msgspec.json.encode(node(state)), JSON),
            "/-/healthy": lambda _: Response(b"healthy\n"),
            "/-/ready": lambda _: Response(b"ready\n"),
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


def _of_run(body: bytes | None) -> Response:
    return _NOT_HERE if body is None else Response(body, JSON)


def _asked(request: Request, name: str) -> str:
    """A parameter of the query, undecoded: a run's directory has no character that needs it."""
    pairs = (pair.partition("=") for pair in request.query.split("&"))
    return next((value for key, _, value in pairs if key == name), "")


def _number(request: Request, name: str) -> int:
    """A parameter as a number of up to fifteen digits; 0 for anything else."""
    text = _asked(request, name)
    return int(text) if text.isdecimal() and text.isascii() and len(text) <= 15 else 0
