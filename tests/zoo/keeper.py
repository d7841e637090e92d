"""Runs programs of the zoo: each in a fork of this process, which has imported torch once, under the hooks and one real daemon.

The import takes longer than most programs do. Everything else is as `gpuwatch run` does it: the hooks are put in by their own
bootstrap, find the daemon by the environment, and are told of the process's end by atexit.
"""

import atexit
import os
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch._dynamo  # the first optimizer imports it, which takes a second

from gpuwatch.state import frames
from gpuwatch.state.findings import Finding
from gpuwatch.state.journal_reader import JournalReader
from tests.running_daemon import RunningDaemon, wait_until
from tests.zoo.program import Program

#: Steps here last a millisecond: the hooks' own share of that says nothing about jobs, so nothing is thinned and the rule
#: that watches it is off.
ENVIRONMENT = {"GPUWATCH": "1", "GPUWATCH_HOOKS_OVERHEAD_BUDGET": "1.0", "GPUWATCH_HOOKS_RING_SLOTS": "2048"}
RULES: dict[str, dict[str, bool | float | str]] = {"hook_overhead": {"enabled": False}}
PROGRAM_SECONDS = 120.0


class Outcome(NamedTuple):
    """What came of one program: its findings, the steps that its first rank took, and how long it ran."""

    findings: list[Finding]
    steps: int
    seconds: float


class Running:
    """One program in its own processes."""

    def __init__(self, program: Program, folder: Path, daemon_socket: Path) -> None:
        self.program = program
        self.seconds = 0.0
        self._folder = folder
        self._started = time.monotonic()
        environment = {**ENVIRONMENT, "GPUWATCH_SOCKET": str(daemon_socket), "GPUWATCH_RUN": program.name}
        environment["GPUWATCH_TOKEN"] = program.name
        if program.ranks > 1:
            environment |= {"WORLD_SIZE": str(program.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        self._children: dict[int, int] = {}  # pid -> rank
        for rank in range(program.ranks):
            ranked = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if program.ranks > 1 else {}
            sys.stdout.flush()
            child = os.fork()
            if not child:
                _become(program, environment | ranked, self._output(rank))
            self._children[child] = rank

    def over(self) -> bool:
        """Whether it has ended. Raises RuntimeError when it failed: it is then no training at all."""
        for child, rank in list(self._children.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                del self._children[child]
            if (ended and status) or time.monotonic() - self._started > PROGRAM_SECONDS:
                self.kill()
                said = self._output(rank).read_text()
                raise RuntimeError(f"{self.program.name} is no training: rank {rank} failed or hung\n{said}")
        self.seconds = time.monotonic() - self._started
        return not self._children

    def kill(self) -> None:
        for child in self._children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        self._children.clear()

    def _output(self, rank: int) -> Path:
        return self._folder / f"{self.program.name}.{rank}.txt"


class Keeper:
    """Owns the daemon, which keeps its runs below `folder`."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)  # a pool of threads would not survive the fork
        self.folder = folder
        self._daemon = RunningDaemon(folder, **{f"rules__{rule}": settings for rule, settings in RULES.items()})
        self._seconds: dict[str, float] = {}

    @property
    def runs(self) -> Path:
        return self._daemon.logdir

    def run(self, programs: list[Program], ended: Callable[[Running], None]) -> None:
        """Run them all, one after the other, and beside these, one after the other, those that wait."""
        lanes = [deque(p for p in programs if p.waits == waits) for waits in (False, True)]
        running: list[Running | None] = [None, None]
        try:
            while any(lanes) or any(running):
                for place, lane in enumerate(lanes):
                    now = running[place]
                    if now is not None and now.over():
                        self._seconds[now.program.name] = now.seconds
                        ended(now)
                        now = None
                    running[place] = now or (Running(lane.popleft(), self.folder, self._daemon.socket) if lane else None)
                time.sleep(0.005)
        finally:
            for left in filter(None, running):
                left.kill()

    def close(self) -> None:
        self._daemon.kill()

    def outcomes(self, programs: list[Program]) -> dict[str, Outcome]:
        """What the daemon has judged, read from its journals; it is ended before, so that everything is in them."""
        names = {program.name for program in programs}

        def over() -> bool:
            known = [run for run in self._daemon.runs().values() if run.run in names]
            return len(known) >= sum(program.ranks for program in programs) and all(run.status != "live" for run in known)

        wait_until(over, 30)
        time.sleep(1.0)  # judging is a tenth of a second behind
        if self._daemon.end() != 0:
            raise RuntimeError(f"the daemon did not end well:\n{self._daemon.log.read_text()}")
        ended = self._daemon.runs().values()
        lost = sum(sum(run.counters.dropped.values()) for run in ended)
        if lost:
            raise RuntimeError(f"{lost} records were lost: this machine was too busy for the zoo")
        steps = {run.run: run.step for run in ended}
        return {name: Outcome(findings(self.runs / name), steps[name], self._seconds[name]) for name in sorted(names)}


def findings(folder: Path) -> list[Finding]:
    """The findings of a run (of all its ranks), as the daemon last wrote them."""
    last: dict[tuple[int, str, str, int], Finding] = {}
    for journal in sorted(folder.rglob("journal")):
        reader = JournalReader(journal)
        while entries := reader.read():
            for entry in entries:
                if entry.frame.kind == frames.KIND_FINDING:
                    finding = entry.frame.decode()
                    last[finding.rank, finding.rule, finding.layer, finding.step] = finding
        reader.close()
    return sorted(last.values(), key=lambda finding: (finding.step, finding.rule))


def _become(program: Program, environment: dict[str, str], output: Path) -> None:
    """In the forked child: be the training process, and never return."""
    status = 1
    try:
        atexit._clear()
        descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(environment)
        torch.manual_seed(0)
        from gpuwatch_hooks import bootstrap

        bootstrap.start()
        program.train()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(status)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
