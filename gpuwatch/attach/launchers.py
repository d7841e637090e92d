"""Which processes only start and await those that train: torchrun and its kind, and a script that has spawned its ranks.

A launcher of a known name is told by it. Any other is told by what it does: a process below it is rank 0, which itself is not;
or its main thread waits for the end of processes that it has started (`torch.multiprocessing.spawn`, `Process.join`,
`Popen.wait`), and one of them has torch loaded and is no loader's worker.
"""

from __future__ import annotations

import collections
import os
import re
import struct
import time
from pathlib import Path

from gpuwatch.attach.process import Process, children, read_process, waiting_in

#: The torch from which on a DataLoader's worker names its thread.
_WORKERS_ARE_NAMED = (2, 6)
_POLLED = struct.Struct("ihh")
_MOST_POLLED, _LOOKED_AGAIN_SECONDS = 4096, 0.02
_RANK_ZERO = ("LOCAL_RANK", "RANK")


def starts_ranks(process: Process) -> bool:
    """Whether `process` starts processes that train, and trains nothing itself."""
    if process.launcher:
        return True
    if _rank(process) is not None or not (process.torch or process.python):
        return False
    below = _below(process.pid)
    if any(_rank(child) == "0" for child in below):
        return True
    waits_for = [child for child in below if child.torch and not is_worker(child)]
    return bool(waits_for) and _waits_for_one_of(process, waits_for)


def is_worker(process: Process) -> bool:
    """A loader's worker, or one of multiprocessing's own helpers. Ranks that torch.multiprocessing.spawn starts are none."""
    if process.name == "pt_data_worker":
        return True
    child = any(word.startswith(("--multiprocessing-fork", "from multiprocessing")) for word in process.argv)
    if any("resource_tracker" in word or "forkserver" in word for word in process.argv):
        return True
    parent = None if child else _read(process.parent)
    if not child and (parent is None or not parent.torch or parent.argv != process.argv):
        return False
    # A child that runs its parent's program. From torch 2.6 on a loader's worker has a name; before, ranks have connections.
    return process.torch_version < _WORKERS_ARE_NAMED and not _has_internet_socket(process.pid)


def _rank(process: Process) -> str | None:
    """The rank on this node, of what says so, in the environment that it was started with."""
    return next((process.ranks[name] for name in _RANK_ZERO if name in process.ranks), None)


def _below(pid: int) -> list[Process]:
    return [process for process in map(_read, children(pid)) if process is not None and process.python]


def _waits_for_one_of(process: Process, candidates: list[Process]) -> bool:
    """Whether its main thread sleeps until one of these processes ends."""
    first = _system_call(process.pid)
    if not first or not _is_for_an_end(process, first, candidates):
        return False
    time.sleep(_LOOKED_AGAIN_SECONDS)
    return _system_call(process.pid) == first


def _is_for_an_end(process: Process, call: list[int], candidates: list[Process]) -> bool:
    where = waiting_in(process.pid)
    if where == "do_wait":  # wait4 and waitid
        numbers = {number for candidate in candidates for number in candidate.namespace_pids}
        return call[1] in numbers or call[2] in numbers or call[1] & 0xFFFFFFFF == 0xFFFFFFFF
    if not where.startswith(("poll_", "do_poll", "do_sys_poll")):
        return False
    # multiprocessing waits in poll, for pipes that close with the processes that hold their other ends. Of a queue's pipe,
    # which a trainer may read from, it has both ends itself.
    held = collections.Counter(_descriptors(process.pid))
    pipes = _polled(process.pid, call[1], call[2])
    return all(held[pipe] == 1 and pipe.startswith("pipe:") for pipe in pipes) and any(
        not pipes.isdisjoint(_descriptors(candidate.pid)) for candidate in candidates
    )


def _system_call(pid: int) -> list[int]:
    """The system call that the main thread sleeps in, and its arguments; empty when it runs, or may not be seen."""
    try:
        words = Path(f"/proc/{pid}/syscall").read_text(encoding="ascii").split()
        return [int(word, 0) for word in words] if len(words) == 9 else []
    except (OSError, ValueError):
        return []


def _polled(pid: int, address: int, count: int) -> set[str]:
    """What the descriptors are that the main thread polls; empty where they cannot be read."""
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            raw = os.pread(memory.fileno(), _POLLED.size * min(count, _MOST_POLLED), address)
        return {os.readlink(f"/proc/{pid}/fd/{fd}") for fd, _, _ in _POLLED.iter_unpack(raw)}
    except (OSError, OverflowError, struct.error):
        return set()


def _descriptors(pid: int) -> list[str]:
    try:
        return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:  # gone, or one of them was closed meanwhile
        return []


def _has_internet_socket(pid: int) -> bool:
    """Whether a TCP connection of its namespace is open in it, as ranks have one to their store."""
    known: set[str] = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        known.update(line.split()[9] for line in lines)
    numbers = (re.fullmatch(r"socket:\[(\d+)\]", target) for target in _descriptors(pid))
    return any(number and number[1] in known for number in numbers)


def _read(pid: int) -> Process | None:
    try:
        return read_process(pid)
    except (OSError, ValueError, KeyError):
        return None
