"""The processes on the GPUs, and training processes that are on none, as rows of a table: sorted, filtered, cut to a width."""

from __future__ import annotations

import pwd
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuwatch.top.quantities import MISSING, of_bytes, percent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpuwatch.top.history import History
    from gpuwatch.top.reading import Job, Reading


@dataclass(frozen=True)
class ProcessRow:
    """One process on one GPU. None and "" stand for what nobody says."""

    gpu: str  # "" for a training process that the driver lists nowhere
    pid: int
    start_ticks: int
    user: str
    command: str
    job: str  # RUN, or RUN:RANK when there are several
    sm_utilization_ratio: float | None
    memory_bytes: int | None
    memory_peak_bytes: int | None
    cpu_ratio: float | None
    resident_bytes: int | None
    container: str = ""
    slurm_job_id: str = ""

    @property
    def key(self) -> str:
        """Tells rows apart from one reading to the next."""
        return f"{self.gpu}/{self.pid}/{self.start_ticks}"


#: Heading -> (cells that it can be cut down to, its place in the order in which columns give way on a narrow screen).
COLUMNS = {
    "PROCESS": (28, 0),  # in the tree, in place of GPU, PID, JOB and COMMAND
    "GPU": (4, 0), "PID": (8, 0), "USER": (8, 3), "SM": (4, 1), "MEM": (6, 0), "PEAK": (6, 4), "CPU": (5, 5), "RAM": (6, 6),
    "JOB": (14, 1), "CONTAINER": (12, 8), "SLURM": (8, 7), "COMMAND": (12, 2),
}  # fmt: skip
NUMERIC = {"PID", "SM", "MEM", "PEAK", "CPU", "RAM"}
#: Columns that are worth sorting by, in the order in which a key goes through them.
SORTABLE = ("MEM", "SM", "PEAK", "CPU", "RAM", "GPU", "PID", "USER", "JOB", "COMMAND")


def rows(reading: Reading, history: History) -> list[ProcessRow]:
    """Every process of every GPU, then the live training processes that are on none."""
    live = reading.live_jobs()
    resident = {} if reading.node.host is None else reading.node.host.processes
    found, listed = [], set()
    for gpu in reading.node.gpus:
        for process in gpu.processes:
            job = live.get(process.pid)
            listed.add(process.pid)
            found.append(
                ProcessRow(
                    gpu=gpu.gpu,
                    pid=process.pid,
                    start_ticks=process.start_ticks,
                    user=process.user,
                    command=process.command,
                    job=_job(job) if job is not None else process.run,
                    sm_utilization_ratio=process.sm_utilization_ratio,
                    memory_bytes=process.memory_bytes,
                    memory_peak_bytes=process.memory_peak_bytes,
                    cpu_ratio=history.cpu_ratio(process.pid),
                    resident_bytes=resident[process.pid].resident_bytes if process.pid in resident else None,
                    container=process.container,
                    slurm_job_id=process.slurm_job_id,
                )
            )
    for pid, job in live.items():
        if pid not in listed:
            found.append(
                ProcessRow(
                    gpu="",
                    pid=pid,
                    start_ticks=job.summary.identity.start_ticks,
                    user=_user(job.summary.identity.uid),
                    command=job.summary.hello.program,
                    job=_job(job),
                    sm_utilization_ratio=None,
                    memory_bytes=None,
                    memory_peak_bytes=None,
                    cpu_ratio=history.cpu_ratio(pid),
                    resident_bytes=resident[pid].resident_bytes if pid in resident else None,
                )
            )
    return found


def cells(row: ProcessRow) -> dict[str, str]:
    """The text under each heading."""
    return {
        "GPU": row.gpu or MISSING,
        "PID": str(row.pid),
        "USER": row.user,
        "SM": percent(row.sm_utilization_ratio),
        "MEM": of_bytes(row.memory_bytes),
        "PEAK": of_bytes(row.memory_peak_bytes),
        "CPU": percent(row.cpu_ratio),
        "RAM": of_bytes(row.resident_bytes),
        "JOB": row.job,
        "CONTAINER": row.container,
        "SLURM": row.slurm_job_id,
        "COMMAND": row.command,
    }


def ordered(found: Iterable[ProcessRow], column: str, *, largest_first: bool) -> list[ProcessRow]:
    """Sorted by a column of SORTABLE; rows without that value come last either way, and equals stay in order of pid."""
    by_pid = sorted(found, key=lambda row: row.pid)
    known = [row for row in by_pid if _value(row, column) is not None]
    unknown = [row for row in by_pid if _value(row, column) is None]
    return [*sorted(known, key=lambda row: _value(row, column), reverse=largest_first), *unknown]  # type: ignore[arg-type,return-value]


def matching(found: Iterable[ProcessRow], wanted: str) -> list[ProcessRow]:
    """Rows in which every word of `wanted` occurs somewhere, whatever its case; `gpu:0` asks for one GPU."""
    words = wanted.lower().split()
    return [row for row in found if all(_has(row, word) for word in words)]


def columns(texts: list[dict[str, str]], width: int, marked: str = "") -> dict[str, int]:
    """Heading -> cells, for those columns that fit into `width` and have anything to say; two cells of gap between them.

    `texts`: what `cells` says of each row, or the lines of a tree. The heading of the column `marked` gets room for an arrow.
    """
    always = {"PROCESS", "MEM", marked} if texts and "PROCESS" in texts[0] else {"GPU", "PID", "MEM", "COMMAND", marked}
    there = texts[0].keys() if texts else always
    said_by = {name: any(text[name] not in ("", MISSING) for text in texts) for name in there}
    shown = [name for name in COLUMNS if name in there and (name in always or said_by[name])]
    said = {name: max([len(name) + (name == marked), *(len(text[name]) for text in texts)]) for name in shown}
    for name in sorted(said, key=lambda name: -COLUMNS[name][1]):
        wide = sum(said.values()) + 2 * len(said) - width
        if wide <= 0:
            break
        if name in ("PROCESS", "JOB", "COMMAND", "USER", "CONTAINER"):  # these can be cut before they have to go
            said[name] = max(min(COLUMNS[name][0], said[name]), said[name] - wide)
            wide = sum(said.values()) + 2 * len(said) - width
        if wide > 0 and COLUMNS[name][1] > 0:
            del said[name]
    return said


def _has(row: ProcessRow, word: str) -> bool:
    if word.startswith("gpu:"):
        return row.gpu == word[4:]
    return any(word in text.lower() for name, text in cells(row).items() if name not in ("SM", "MEM", "PEAK", "CPU", "RAM"))


def _value(row: ProcessRow, column: str) -> float | str | list[int] | None:
    values: dict[str, float | str | list[int] | None] = {
        "GPU": [int(part) for part in row.gpu.split(":")] if row.gpu else None,
        "PID": row.pid,
        "SM": row.sm_utilization_ratio,
        "MEM": row.memory_bytes,
        "PEAK": row.memory_peak_bytes,
        "CPU": row.cpu_ratio,
        "RAM": row.resident_bytes,
    }
    return values[column] if column in values else cells(row)[column] or None


def _job(job: Job) -> str:
    known = job.summary
    return f"{known.run}:{known.rank}" if known.world_size > 1 else known.run


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
