"""Who a training process is: what the kernel says (Identity) and what its hooks say (Hello)."""

from __future__ import annotations

import functools
import os

import msgspec


class Identity(msgspec.Struct, frozen=True):
    """A process as the kernel names it. Start time tells a re-used pid from the process that we knew."""

    uid: int
    pid: int  # as the daemon's own pid namespace sees it (SO_PEERCRED)
    start_ticks: int  # field 22 of /proc/PID/stat, clock ticks since boot; 0 when it could not be read


@functools.cache
def ourselves() -> Identity:
    """This process. Not to be asked before a fork."""
    with open("/proc/self/stat", "rb") as stat:
        ticks = int(stat.read().rpartition(b")")[2].split()[19])
    return Identity(os.geteuid(), os.getpid(), ticks)


class Hello(msgspec.Struct, frozen=True):
    """The first message of a training process. Everything here is a claim: it may group and label, never grant anything."""

    run: str
    token: str  # one for each `gpuwatch run`
    rank: int
    world_size: int
    ring_id: int
    monotonic_ns: int  # the process's CLOCK_MONOTONIC and wall clock, read together
    wall_ns: int
    local_rank: int = 0
    attempt_id: str = ""
    version: str = ""
    python: str = ""
    torch: str = ""
    framework: str = ""
    program: str = ""
    device: str = ""
    ns_pid: int = 0  # the pid that the process itself sees, in its own namespace
