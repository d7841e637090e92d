"""What `gpuwatch run` is told when its command has ended: how each process of it stands, and what of it is kept.

Only `run` knows the exit status, and only the daemon knows what a disk that refuses has cost. The reply comes from
memory, so it is true also when run.json could not be written.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpuwatch.intake.decode import Ended
from gpuwatch.state import trouble
from gpuwatch.state.findings import gravest
from gpuwatch.state.identity import Identity
from gpuwatch.state.runs import Run
from gpuwatch.state.store import State

_ROOT = 0
#: A reply is one message of at most 64 KiB, and a process takes about 300 bytes of it.
_MAX_TOLD = 128


def conclude(message: Ended, caller: Identity, state: State, no_room: Mapping[str, str]) -> dict[str, object]:
    """Take the exit status over; {t: done, runs: [...], refused: why nothing was recorded, or ""}.

    Asked again it answers again: a process may still be on its way out. Root and the job's own user may ask.
    """
    with state.lock:
        runs = [
            run for run in state.runs.values() if run.hello.token == message.token and caller.uid in {_ROOT, run.identity.uid}
        ]
        before = [(run.status, run.end_reason) for run in runs]
        for run in runs:
            if run.identity.pid == message.pid:
                run.conclude(message.status)
        unexplained = 0 if _has_told_its_failure(runs) else message.status
        for run, known in zip(runs, before, strict=True):
            run.conclude_command(unexplained)
            if known != (run.status, run.end_reason):
                state.save(run)
        told = [_told(run, state) for run in runs[-_MAX_TOLD:]]
    return {"t": "done", "runs": told, "refused": no_room.get(message.token, "")}


def _has_told_its_failure(runs: list[Run]) -> bool:
    """Whether a process's own end explains why the command failed. One of an attempt that was started again does not."""
    attempts: dict[str, int] = {}
    for run in runs:
        attempts[run.name] = max(run.attempt, attempts.get(run.name, 0))
    return any(
        run.status == "failed" and not run.end_reason.startswith("command ") and run.attempt == attempts[run.name]
        for run in runs
    )


def _told(run: Run, state: State) -> dict[str, object]:
    findings = gravest((finding.rule, finding.severity) for finding in state.findings.of_run(run.directory))
    return {
        "run": run.name,
        "directory": run.directory,
        "rank": run.rank,
        "world_size": run.world_size,
        "pid": run.identity.pid,
        "status": run.status,
        "end_reason": run.end_reason,
        "step": run.last_step,
        "kept_step": run.kept_step,
        "lost_records": run.counters.dropped.get("journal", 0),
        "trouble": trouble.of(run),
        "findings": findings,
    }
