"""What is around each run, gathered from the state once a second for the rules that look at moments."""

from __future__ import annotations

import time

from gpuwatch.detectors.moment import Component, Device, Moment, Replica
from gpuwatch.judging import activity
from gpuwatch.selfstats import SelfStats
from gpuwatch.state.gpus import Gpu
from gpuwatch.state.runs import Run
from gpuwatch.state.series import Window
from gpuwatch.state.store import State

#: Points of a norm that are compared between ranks.
COMPARED_POINTS = 64
FIRST_POINTS = 8


class Moments:
    """Call `take` from one thread. It takes the state's lock for some 50 us a run."""

    def __init__(self, state: State, stats: SelfStats) -> None:
        self._state = state
        self._stats = stats
        self._devices: dict[str, set[str]] = {}  # run directory -> UUIDs of the GPUs that its process was ever seen on

    def take(self, runs: list[Run]) -> list[tuple[Run, Moment]]:
        """The present moment of each of these runs; of one that has ended, its last."""
        components = {name: Component(c.up, c.last_error) for name, c in self._stats.components().items()}
        with self._state.lock:
            now_ns = time.monotonic_ns()
            replicas: dict[tuple[int, str, str], dict[int, Replica]] = {}
            for run in self._state.runs.values():
                if run.status == "live" and run.world_size > 1:
                    replicas.setdefault(_job(run), {})[run.rank] = _replica(run)
            found = [(run, self._moment(run, now_ns, replicas.get(_job(run), {}), components)) for run in runs]
            for run, moment in found:
                activity.note(run, moment)
            return found

    def forget(self, run: Run) -> None:
        """The run has ended."""
        self._devices.pop(run.directory, None)

    def _moment(self, run: Run, now_ns: int, replicas: dict[int, Replica], components: dict[str, Component]) -> Moment:
        state = self._state
        pid = run.identity.pid
        known = self._devices.setdefault(run.directory, set())
        if run.status == "live":
            known.update(gpu.uuid for gpu in state.gpus if pid in gpu.processes)
        step_seconds = run.windows["step_seconds"]
        return Moment(
            monotonic_ns=now_ns,
            status=run.status,
            step=run.last_step,
            steps=run.counters.steps,
            step_age_seconds=(now_ns - run.step.monotonic_ns) / 1e9 if run.step is not None else None,
            usual_seconds=run.durations.quantile(0.99),
            longest_seconds=max(step_seconds.values(), default=0.0),
            values=dict(run.values),
            facts=run.facts,
            events=run.events,
            rank=run.rank,
            replicas=tuple(replica for _, replica in sorted(replicas.items())),
            devices=tuple(_device(gpu) for gpu in state.gpus if gpu.uuid in known),
            process=state.host.processes.get(pid) if state.host is not None else None,
            host=state.host,
            sampler=state.gpus.state,
            components=components,
        )


def _job(run: Run) -> tuple[int, str, str]:
    """What the ranks of one job have in common: two users, or two launches, never do."""
    return run.identity.uid, run.name, run.hello.token


def _device(gpu: Gpu) -> Device:
    return Device(gpu.label, gpu.up, gpu.reason, dict(gpu.values))


def _replica(run: Run) -> Replica:
    counters = run.counters
    return Replica(
        rank=run.rank,
        steps=counters.steps,
        own_seconds=counters.phase_seconds.get("data", 0.0) + counters.phase_seconds.get("forward", 0.0),
        step_seconds=run.durations.sum_seconds,
        layout=hash(tuple(run.tensors.numels)),
        sharded=bool(run.facts.get("sharded", False)),
        weight_norms=_points(run.windows["weight_norm"]),
        grad_norms=_points(run.windows["grad_norm"]),
    )


def _points(window: Window) -> dict[int, float]:
    """The first points of the window, which show that ranks began alike, and the last ones."""
    points = list(zip(window.steps(), window.values(), strict=True))
    return dict(points[:FIRST_POINTS] + points[-COMPARED_POINTS:])
