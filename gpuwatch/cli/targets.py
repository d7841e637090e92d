"""Which processes `attach` and `detach` are to act on, and acting on all of them at once."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec

from gpuwatch import paths
from gpuwatch.attach import attacher, launchers, log, preflight
from gpuwatch.attach.attacher import Outcome
from gpuwatch.attach.process import Process, children, python_processes, read_process
from gpuwatch.cli.terminal import paint

#: Ranks of one node; more than that at once would only queue for the cores.
_MAX_PARALLEL = 16
_WAIT_SECONDS = 0.2


def chosen(pids: tuple[int, ...], everything: bool, tree: int | None) -> list[int]:
    """The pids that the arguments mean. Raises a click error when they mean none."""
    if (bool(pids) + everything + (tree is not None)) != 1:
        raise click.UsageError("give one or more PIDs, or --all, or --tree PID (gpuwatch ps lists what trains here)")
    if pids:
        return list(dict.fromkeys(pids))
    if everything:
        found = [process for process in python_processes() if trains(process)]
    else:
        assert tree is not None
        found = [process for process in map(_read, [tree, *children(tree)]) if process is not None and trains(process)]
    if not found:
        where = "here" if everything else f"below process {tree}"
        raise click.ClickException(f"no training process was found {where}; gpuwatch ps lists the Python processes")
    return [process.pid for process in found]


def trains(process: Process) -> bool:
    """Whether it looks like a process that trains: torch loaded, neither a parent of ranks nor a loader's worker."""
    return process.torch and not launchers.starts_ranks(process) and not launchers.is_worker(process)


def _read(pid: int) -> Process | None:
    try:
        return read_process(pid)
    except (OSError, ValueError, KeyError):
        return None


def wait_for_torch(pids: list[int], timeout_seconds: float) -> None:
    """Until each has loaded torch, or there is another reason against it. Raises a click error after the timeout."""
    deadline = time.monotonic() + timeout_seconds
    for pid in pids:
        while (process := _read(pid)) is not None and [f.code for f in preflight.check(process) if f.fatal] == ["no_torch"]:
            if time.monotonic() > deadline:
                raise click.ClickException(f"process {pid} has not loaded torch after {timeout_seconds:g} s")
            time.sleep(_WAIT_SECONDS)


def act(pids: list[int], verb: str, options: dict[str, Any], method: str, timeout_seconds: float) -> list[Outcome]:
    """The same for every pid, all at once: a process each, since a tracee belongs to one thread."""
    shared = paths.socket_to_call()
    asked = options.get("socket") in (None, str(shared))  # hooks that the shared daemon hears are not heard by another
    daemon = shared if asked and paths.answers(shared) else None
    work = partial(_one, verb=verb, options=options, method=method, timeout_seconds=timeout_seconds, daemon=daemon)
    if len(pids) == 1:
        return [work(pids[0])]
    with multiprocessing.get_context("fork").Pool(min(len(pids), _MAX_PARALLEL)) as pool:
        return pool.map(work, pids, chunksize=1)


def _one(pid: int, verb: str, options: dict[str, Any], method: str, timeout_seconds: float, daemon: Path | None) -> Outcome:
    outcome = attacher.apply(pid, verb, options, method=method, timeout_seconds=timeout_seconds, daemon=daemon)
    try:
        log.write(verb, outcome)
    except OSError as error:
        click.echo(f"gpuwatch: {error.filename or 'the log of attaches'} could not be written ({error.strerror})", err=True)
    return outcome


def show(outcomes: list[Outcome], words: dict[str, str], as_json: bool) -> None:
    """One line a process, or JSON; exit 1 when not every one went well."""
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(outcomes), indent=2).decode())
    else:
        for outcome in outcomes:
            click.echo(_line(outcome, words))
    if not all(outcome.good for outcome in outcomes):
        raise SystemExit(1)


def _line(outcome: Outcome, words: dict[str, str]) -> str:
    who = f"{outcome.pid} {outcome.title}".strip()
    if not outcome.good:
        colour = "yellow" if outcome.answer == "queued" else "red"
        return f"{who}: {paint(outcome.answer, colour)}: {outcome.sentence}; {outcome.fix}"
    stopped = f", stopped for {outcome.stopped_microseconds:.0f} us" if outcome.stopped_microseconds else ", not stopped"
    took = f" ({outcome.method}{stopped}, {outcome.seconds * 1e3:.0f} ms in all)"
    return f"{who}: {paint(words.get(outcome.answer, outcome.answer), 'green')}{took}"


def until_interrupted(seconds: float | None, alive: Callable[[], bool]) -> None:
    """Wait for Ctrl-C, for the time to pass, or for the last process to end."""
    deadline = None if seconds is None else time.monotonic() + seconds
    try:
        while alive() and (deadline is None or time.monotonic() < deadline):
            time.sleep(0.1)
    except KeyboardInterrupt:
        click.echo("", err=True)


def alive(pids: list[int]) -> bool:
    """Whether any of them still runs."""
    return any(os.path.exists(f"/proc/{pid}") and (p := _read(pid)) is not None and p.state != "Z" for pid in pids)
