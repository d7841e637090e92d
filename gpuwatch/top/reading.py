"""What `gpuwatch top` shows at one moment, wherever it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from gpuwatch.state import summary
from gpuwatch.state.node_report import NodeReport
from gpuwatch.state.summary import RunSummary


class Job(NamedTuple):
    """One process of a training run."""

    summary: RunSummary
    status: str  # live | finished | failed | lost; as the processes are now, which run.json may not know yet

    @property
    def steps_per_second(self) -> float | None:
        """Over the last window of steps; None before the second step."""
        took = [summary.number(value) for value in self.summary.recent.get("step_seconds", [])]
        usable = [value for value in took if value > 0]
        return len(usable) / sum(usable) if usable else None

    def value(self, name: str) -> float | None:
        """The last known value of a step field; may be NaN or infinite."""
        value = self.summary.values.get(name)
        return None if value is None else summary.number(value)


@dataclass(frozen=True)
class Reading:
    """A node and its training jobs."""

    monotonic_seconds: float
    node: NodeReport
    jobs: list[Job]
    source: str  # "daemon", or "top" when it sampled by itself
    note: str  # one sentence for people: where this comes from, and what is wrong with it
    stale: bool = False  # the daemon has stopped answering, and this is the last that it said

    def live_jobs(self) -> dict[int, Job]:
        """The live training processes by pid."""
        return {job.summary.identity.pid: job for job in self.jobs if job.status == "live"}
