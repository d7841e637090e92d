"""The last words of `gpuwatch run`: what was recorded, what was lost and why, as the daemon knows it.

The daemon is asked while it still runs, and tells from memory: run.json cannot say that it could not be written.
"""

from __future__ import annotations

import json
import shlex
import socket
import time
from pathlib import Path

import msgspec

from gpuwatch.cli import recorded
from gpuwatch.cli.standing import ending, shortfall, since
from gpuwatch.state.findings import gravest

#: A process that has just ended is noticed within 0.1 s, and the rules judge its last steps half a second later.
_SETTLE_SECONDS = 3.0
_LOOK_SECONDS = 0.1
_RULES_SECONDS = 0.8
_REPLY_SECONDS = 2.0
_MAX_REPLY_BYTES = 1 << 16
_MAX_NAMED = 4


class Process(msgspec.Struct):
    """One process that trained, as the daemon has it (intake/endings.py)."""

    run: str
    directory: str
    rank: int
    world_size: int
    pid: int
    status: str
    end_reason: str
    step: int
    kept_step: int | None
    lost_records: int = 0
    trouble: str = ""
    unfollowed: str = ""  # since when nobody follows it, for a daemon that is gone
    findings: dict[str, str] = {}  # rule -> severity


class Answer(msgspec.Struct):
    """What became of a command's processes; `refused` says why some could not be recorded at all."""

    runs: list[Process] = []
    refused: str = ""


def ask(daemon: Path, token: str, pid: int, status: int) -> Answer | None:
    """Tell the daemon how the command ended, wait until it has noticed that its processes did; None when it is gone."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    told = _ask_once(daemon, token, pid, status)
    while told is not None and _is_leaving(told) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        told = _ask_once(daemon, token, pid, status)
    return told


def settle(daemon: Path, token: str, pid: int, status: int) -> Answer | None:
    """`ask` once more when the rules have judged the last steps: for a daemon that goes on."""
    time.sleep(_RULES_SECONDS)
    return _ask_once(daemon, token, pid, status)


def on_disk(token: str, logdir: Path) -> Answer:
    """The same from run.json: for a daemon that is gone. A flushed one has written there what it found last."""
    return Answer([_from_file(found) for found in recorded.scan(logdir) if found.summary.hello.token == token])


def completed(told: Answer | None, found: Answer) -> Answer:
    """What the daemon said, with the findings that it made after that and wrote down."""
    if told is None:
        return found
    later = {process.directory: process.findings for process in found.runs}
    for process in told.runs:
        process.findings = gravest([*process.findings.items(), *later.get(process.directory, {}).items()])
    return told


def sentences(answer: Answer, logdir: Path, status: int) -> list[str]:
    """What to tell of processes that trained: steps, how they ended where not well, findings, what was lost, where to look.

    `status` is the command's: its exit code, or minus the signal that killed it.
    """
    trained = [process for process in answer.runs if process.step]
    told = [f"{_steps(trained)}{_endings(trained, status)}, findings: {_findings(trained)}"]
    short: dict[str, list[Process]] = {}
    for process in trained:
        if why := _shortfall(process):
            short.setdefault(why, []).append(process)
    for why, processes in short.items():
        where = "" if len(trained) == 1 else f"{', '.join(process.directory for process in processes[:_MAX_NAMED])}: "
        told.append(f"NOT ALL OF IT WAS KEPT: {where}{why}")
    return [*told, f"see {_command(trained, logdir)}"]


def _steps(trained: list[Process]) -> str:
    runs = list(dict.fromkeys(process.run for process in trained))
    if len(runs) == 1:
        ranks = len({process.rank for process in trained})
        return f"{max(process.step for process in trained):,} steps {_verb(trained)}" + (
            f" on {ranks} ranks" if ranks > 1 else ""
        )
    each = [f"{max(p.step for p in trained if p.run == run):,} as {run}" for run in runs[:_MAX_NAMED]]
    more = f" and {len(runs) - _MAX_NAMED} more" if len(runs) > _MAX_NAMED else ""
    return f"{len(trained)} processes trained on their own; steps {_verb(trained)}: {', '.join(each)}{more}"


def _verb(trained: list[Process]) -> str:
    return "seen" if any(_shortfall(process) and not process.unfollowed for process in trained) else "recorded"


def _shortfall(process: Process) -> str:
    if process.unfollowed:
        return f"the daemon is gone, and what came after {process.unfollowed} is not recorded"
    return shortfall(process.step, process.kept_step, process.trouble, process.lost_records)


def _endings(trained: list[Process], status: int) -> str:
    """How processes ended that did not end well, which have not ended, and the command's failure where none explains it."""
    marked = [p for p in trained if p.end_reason.startswith("command ")]
    bad = [p for p in trained if p.status in {"failed", "lost"} and not p.unfollowed and p not in marked]
    alive = [p for p in trained if p.status == "live"]
    words = []
    for process in bad[:_MAX_NAMED]:
        who = f"rank {process.rank} " if process.world_size > 1 else "" if len(trained) == 1 else f"{process.run} "
        words.append(who + ending(process.status, process.end_reason))
    if alive:
        words.append(f"{len(alive)} still running" if len(trained) > 1 else f"process {alive[0].pid} still runs")
    if status and (marked or not any(p.status == "failed" for p in bad)):
        how = f"signal {-status}" if status < 0 else f"exit {status}"
        words.append(f"the command {ending('failed', how)}")
    return f" ({'; '.join(words)})" if words else ""


def _findings(trained: list[Process]) -> str:
    worst = gravest(item for process in trained for item in process.findings.items())
    return ", ".join(f"{rule} ({severity})" for rule, severity in worst.items()) or "none"


def _command(trained: list[Process], logdir: Path) -> str:
    runs = list(dict.fromkeys(process.run for process in trained))
    where = f"--logdir {shlex.quote(str(logdir))}"
    return f"gpuwatch status {runs[0]} {where}" if len(runs) == 1 else f"gpuwatch runs {where}"


def _is_leaving(answer: Answer) -> bool:
    """A process that is no more counts as live still: the daemon is about to notice."""
    return any(process.status == "live" and not Path(f"/proc/{process.pid}").exists() for process in answer.runs)


def _ask_once(daemon: Path, token: str, pid: int, status: int) -> Answer | None:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(_REPLY_SECONDS)
            connection.connect(str(daemon))
            connection.send(json.dumps({"t": "ended", "token": token, "pid": pid, "status": status}).encode())
            return msgspec.json.decode(connection.recv(_MAX_REPLY_BYTES), type=Answer)
    except (OSError, msgspec.MsgspecError):
        return None


def _from_file(found: recorded.Recorded) -> Process:
    known = found.summary
    return Process(
        run=known.run,
        directory=known.directory,
        rank=known.rank,
        world_size=known.world_size,
        pid=known.identity.pid,
        status=found.status,
        end_reason=known.end_reason,
        step=known.step,
        kept_step=known.kept_step,
        trouble=known.trouble,
        unfollowed=since(found),
        findings=gravest((finding.rule, finding.severity) for finding in known.findings),
    )
