"""Samples GPUs and the host without a daemon, by the daemon's own means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuwatch.config import Sampling
from gpuwatch.samplers.host import HostSampler
from gpuwatch.samplers.supervisor import Supervisor
from gpuwatch.state.gpus import Gpus
from gpuwatch.state.node_report import report

if TYPE_CHECKING:
    from gpuwatch.state.node_report import NodeReport
    from gpuwatch.top.reading import Job


class OwnSampler:
    """An NVML child of our own, and /proc."""

    def __init__(self) -> None:
        self._gpus = Gpus()
        self._supervisor = Supervisor(self._gpus, Sampling())
        self._host = HostSampler()

    def turn(self) -> None:
        """To be called some ten times a second; never waits."""
        self._supervisor.turn()

    def report(self, live: dict[int, Job]) -> NodeReport:
        """The node now; `live`: the training processes by pid."""
        ranks = {pid: (job.summary.run, str(job.summary.rank)) for pid, job in live.items()}
        return report(self._gpus, self._host.sample(live), ranks)

    def close(self) -> None:
        self._supervisor.close()
