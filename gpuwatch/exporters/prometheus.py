"""/metrics: the state as one document, in the format that the scraper asks for."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from gpuwatch.exporters import notifications
from gpuwatch.exporters.exposition import OPENMETRICS, TEXT, Renderer, wants_openmetrics
from gpuwatch.exporters.gpu_samples import add_gpus, add_host
from gpuwatch.exporters.http import Response
from gpuwatch.exporters.run_samples import add_findings, add_run
from gpuwatch.exporters.samples import Samples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuwatch.config import Config
    from gpuwatch.exporters.request import Request
    from gpuwatch.selfstats import SelfStats
    from gpuwatch.state.runs import Run
    from gpuwatch.state.store import State

#: A scrape within this time of the last one gets the same document: whoever hammers us does not hold the state's lock.
_MAX_AGE_SECONDS = 0.5
#: How long a run that has ended keeps its series: several scrapes, so that its last values and counts are seen.
ENDED_SECONDS = 300.0


class Prometheus:
    """Renders the metrics of `state`. `rules`: the ids of all rules. Any thread may call `document`."""

    def __init__(self, config: Config, state: State, stats: SelfStats, version: str, rules: Sequence[str]) -> None:
        self._config = config
        self._state = state
        self._stats = stats
        self._version = version
        self._rules = rules
        self._lock = threading.Lock()
        self._renderers = {False: Renderer(), True: Renderer()}
        self._documents: dict[bool, tuple[float, str, bytes]] = {}  # format -> when, the sampling's state then, text
        self._ended_at: dict[str, float] = {}  # run directory -> time.monotonic() when its end was first seen here

    def serve(self, request: Request) -> Response:
        """The handler of /metrics."""
        openmetrics = wants_openmetrics(request.headers.get("accept", ""))
        return Response(self.document(openmetrics=openmetrics), OPENMETRICS if openmetrics else TEXT)

    def document(self, *, openmetrics: bool = False) -> bytes:
        """The exposition as of now, or of _MAX_AGE_SECONDS ago at most."""
        with self._lock:
            now = time.monotonic()
            rendered_at, sampling, document = self._documents.get(openmetrics, (-1e9, "", b""))
            # Whoever asks while the GPUs are being opened has them as soon as they are there.
            if now - rendered_at > _MAX_AGE_SECONDS or sampling != self._state.gpus.state:
                sampling = self._state.gpus.state
                document = self._renderers[openmetrics].render(self.samples().families(), openmetrics=openmetrics)
                self._documents[openmetrics] = (now, sampling, document)
            return document

    def samples(self) -> Samples:
        """Everything there is to tell now."""
        samples = Samples(details=self._config.prometheus.details)
        samples.add("build_info", (self._version,), 1)
        components = self._stats.components()
        samples.add("up", (), int(all(component.up for component in components.values())))
        for name, component in sorted(components.items()):
            samples.add("component_up", (name,), int(component.up))
        for (name, label), count in self._stats.counters().items():
            if name == notifications.COUNTER:
                samples.add("notifications_total", tuple(label.split("/")), count)
        with self._state.lock:
            runs = self._present_runs()
            self._add_state(samples, runs)
        return samples

    def _add_state(self, samples: Samples, runs: list[Run]) -> None:
        state = self._state
        now_ns = time.monotonic_ns()
        ranks = {run.identity.pid: (run.name, str(run.rank)) for run in runs if run.status == "live"}
        add_gpus(samples, state.gpus, now_ns, ranks, self._config.limits.process_rows)
        add_host(samples, state.host)
        gpus_of: dict[int, list[str]] = {}
        for gpu in state.gpus:
            for pid in gpu.processes:
                gpus_of.setdefault(pid, []).append(gpu.label)
        active = {(directory, rule) for directory, rule, _ in state.findings.active}
        for run in runs:
            live = run.status == "live"
            process = state.host.processes.get(run.identity.pid) if state.host is not None and live else None
            gpus = gpus_of.get(run.identity.pid, []) if live else []
            add_run(samples, run, gpus, process, self._config.prometheus.layer_top_k)
            add_findings(samples, run, {rule: (run.directory, rule) in active for rule in self._rules})

    def _present_runs(self) -> list[Run]:
        """The runs to show, one for each pair of run and rank: two attempts would be one series with two values."""
        now = time.monotonic()
        present: dict[tuple[str, int], Run] = {}
        for run in self._state.runs.values():
            if run.status != "live":
                ended_at = self._ended_at.setdefault(run.directory, now)
                if now - ended_at > ENDED_SECONDS:
                    continue
            rival = present.get((run.name, run.rank))
            if rival is None or run.status == "live" or rival.status != "live":
                present[run.name, run.rank] = run
        self._ended_at = {name: at for name, at in self._ended_at.items() if name in self._state.runs}
        return list(present.values())
