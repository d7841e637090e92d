"""The process table as a tree: under each GPU the training jobs on it, under each job its processes, child under parent."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gpuwatch.top.process_rows import cells
from gpuwatch.top.quantities import MISSING, number, of_bytes, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from gpuwatch.state.node_report import GpuReport
    from gpuwatch.top.process_rows import ProcessRow
    from gpuwatch.top.reading import Reading

#: Columns of the table that say in the tree what its place says.
_SAID_BY_PLACE = {"GPU", "PID", "JOB", "COMMAND"}


class Branch(NamedTuple):
    """One line: a process, or a heading, which has none."""

    key: str
    cells: dict[str, str]
    process: ProcessRow | None


def branches(
    found: list[ProcessRow],
    reading: Reading,
    ancestors: Mapping[int, tuple[int, ...]],
    order: Callable[[list[ProcessRow]], list[ProcessRow]],
) -> list[Branch]:
    """All lines, top to bottom. `order` sorts whatever stands on one level; a GPU without a process has no line."""
    lines: list[Branch] = []
    for gpu in [*reading.node.gpus, None]:
        label = gpu.gpu if gpu is not None else ""
        there = order([row for row in found if row.gpu == label])
        if there:
            lines.append(_heading(f"gpu/{label}", _gpu(gpu), there, gpu))
            lines += _of_gpu(label, there, reading, ancestors)
    return lines


def _of_gpu(
    label: str, there: list[ProcessRow], reading: Reading, ancestors: Mapping[int, tuple[int, ...]]
) -> Iterator[Branch]:
    runs = dict.fromkeys(_run(row) for row in there)  # in the order of their first process
    parts = sorted(runs, key=lambda run: not run)  # what belongs to no run comes last
    for run in parts:
        of_run = [row for row in there if _run(row) == run]
        last = run == parts[-1]
        if run:
            yield _heading(f"job/{label}/{run}", f"{'└─' if last else '├─'} {_job(run, reading)}", of_run)
        yield from _nested(of_run, ancestors, ("   " if last else "│  ") if run else "")


def _nested(rows: list[ProcessRow], ancestors: Mapping[int, tuple[int, ...]], indent: str) -> Iterator[Branch]:
    """Each process under the nearest of its ancestors that is here too."""
    here = {row.pid for row in rows}
    children: dict[int, list[ProcessRow]] = {}
    for row in rows:
        parent = next((pid for pid in ancestors.get(row.pid, ()) if pid in here), 0)
        children.setdefault(parent, []).append(row)

    def below(parent: int, indent: str) -> Iterator[Branch]:
        siblings = children.get(parent, [])
        for row in siblings:
            last = row is siblings[-1]
            rank = row.job.partition(":")[2]
            name = f"{indent}{'└─' if last else '├─'} {row.pid} {row.command}{f' (rank {rank})' if rank else ''}"
            rest = {column: text for column, text in cells(row).items() if column not in _SAID_BY_PLACE}
            yield Branch(row.key, {"PROCESS": name, **rest}, row)
            yield from below(row.pid, indent + ("   " if last else "│  "))

    return below(0, indent)


def _heading(key: str, told: str, rows: list[ProcessRow], gpu: GpuReport | None = None) -> Branch:
    """A line of its own with what its processes have together; of a GPU, what the GPU says."""
    empty = {column: "" for column in cells(rows[0]) if column not in _SAID_BY_PLACE}
    known = [row.memory_bytes for row in rows if row.memory_bytes is not None]
    total = {"MEM": of_bytes(sum(known)) if known else MISSING}
    if gpu is not None:
        total = {"SM": percent(gpu.values.get("utilization_ratio")), "MEM": of_bytes(gpu.values.get("memory_used_bytes"))}
    return Branch(key, {"PROCESS": told, **empty, **total}, None)


def _gpu(gpu: GpuReport | None) -> str:
    if gpu is None:
        return "on no GPU"
    return f"GPU {gpu.gpu} {gpu.info.get('name', '').removeprefix('NVIDIA ')}".rstrip()


def _run(row: ProcessRow) -> str:
    return row.job.partition(":")[0]  # the name of a run has no colon


def _job(run: str, reading: Reading) -> str:
    """The job with what one wants to know first; of its lowest live rank."""
    ranks = [job for job in reading.jobs if job.summary.run == run and job.status == "live"]
    if not ranks:
        return run
    first = min(ranks, key=lambda job: job.summary.rank)
    return f"{run}, step {first.summary.step:,}, loss {number(first.value('loss'))}"
