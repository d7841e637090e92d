"""Who a process on a GPU is: program, user, container, SLURM job, Kubernetes pod; read once, from files that cannot block.

The program's name is the basename of /proc/PID/exe, or the kernel's comm where exe is not ours to read. The command line is
never read: it may hold secrets, and reading it waits for the memory lock of a process that the driver may have wedged.
Of the environment only the variables named here are taken.
"""

from __future__ import annotations

import os
import pwd
import re
import threading

_CONTAINER = re.compile(rb"(?:^|[/:-])([0-9a-f]{12})[0-9a-f]{52}(?:\.scope)?(?:$|/)", re.MULTILINE)
_SLURM_CGROUP = re.compile(rb"/job_(\d+)(?:/|$)", re.MULTILINE)
# kubelet's cgroups: /kubepods/burstable/pod<UID>/... and kubepods-burstable-pod<UID with _>.slice
_POD_CGROUP = re.compile(
    rb"kubepods.*?[/-]pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:[./]|$)", re.MULTILINE
)
_SLURM_JOB = re.compile(r"\d{1,20}")
_POD_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")  # what Kubernetes allows
# By what the downward API is customarily asked to call them; the host's name is the pod's unless hostNetwork is set.
_POD_VARIABLES = ("POD_NAME", "K8S_POD_NAME", "MY_POD_NAME", "KUBERNETES_POD_NAME", "HOSTNAME")
_NAMESPACE_VARIABLES = ("POD_NAMESPACE", "K8S_POD_NAMESPACE", "MY_POD_NAMESPACE", "KUBERNETES_NAMESPACE", "K8S_NAMESPACE")
_WANTED = frozenset(("SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST", *_POD_VARIABLES, *_NAMESPACE_VARIABLES))

# (start ticks, command, user, container, SLURM job, pod, its namespace)
Identity = tuple[int, str, str, str, str, str, str]

_MAX_COMMAND = 64


class UserNames:
    """uid -> login name. A directory service may take seconds to answer, so it is asked on a thread of its own."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._asked: set[int] = set()

    def name(self, uid: int) -> str:
        """The login name, or the number as long as no name is known."""
        if uid not in self._asked:
            self._asked.add(uid)
            thread = threading.Thread(target=self._ask, args=(uid,), name="user-name", daemon=True)
            thread.start()
            thread.join(0.01)  # a local passwd file answers in well under a millisecond
        return self._names.get(uid, str(uid))

    def _ask(self, uid: int) -> None:
        try:
            self._names[uid] = pwd.getpwuid(uid).pw_name
        except (KeyError, OSError):
            self._names[uid] = str(uid)


class Identities:
    """Identities of the processes last seen, each read once."""

    def __init__(self) -> None:
        self._users = UserNames()
        self._known: dict[int, Identity] = {}
        self._uids: dict[int, int] = {}

    def of(self, pids: set[int], *, recheck: bool = False) -> dict[int, Identity]:
        """Identities of `pids`; others are forgotten. With `recheck`, a pid that the kernel gave anew is read again."""
        known = {pid: identity for pid, identity in self._known.items() if pid in pids}
        for pid in pids:
            old = known.get(pid)
            if old is not None and recheck:
                stat = read_stat(pid)
                if stat is not None and stat[1] != old[0]:
                    old = None
            if old is None:
                fresh = self._read(pid)
                if fresh is not None:
                    known[pid] = fresh
            elif old[2].isdecimal():
                known[pid] = (*old[:2], self._users.name(self._uids[pid]), *old[3:])
        self._known = known
        self._uids = {pid: uid for pid, uid in self._uids.items() if pid in known}
        return known

    def _read(self, pid: int) -> Identity | None:
        stat = read_stat(pid)
        if stat is None:
            return None
        comm, start_ticks, state = stat
        try:
            self._uids[pid] = os.stat(f"/proc/{pid}").st_uid
        except OSError:
            return None
        try:
            command = os.path.basename(os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)"))
        except OSError:
            command = comm
        cgroup = _read_file(f"/proc/{pid}/cgroup")
        container = _CONTAINER.search(cgroup)
        slurm = _SLURM_CGROUP.search(cgroup) if b"slurm" in cgroup else None
        # Reading the environment takes the process's memory lock.
        environ = {} if state == "D" else _environ(pid)
        pod, namespace = _kubernetes(cgroup, environ)
        return (
            start_ticks,
            "".join(c if c.isprintable() else "?" for c in command)[:_MAX_COMMAND],
            self._users.name(self._uids[pid]),
            container[1].decode() if container else "",
            slurm[1].decode() if slurm else _matching(_SLURM_JOB, environ, ("SLURM_JOB_ID",)),
            pod,
            namespace,
        )


def _kubernetes(cgroup: bytes, environ: dict[str, str]) -> tuple[str, str]:
    """(pod, namespace): the pod's name where the environment has it, else its UID from the cgroup."""
    uid = _POD_CGROUP.search(cgroup)
    if uid is None and "KUBERNETES_SERVICE_HOST" not in environ:
        return "", ""
    name = _matching(_POD_NAME, environ, _POD_VARIABLES)
    return name or (uid[1].decode().replace("_", "-") if uid else ""), _matching(_POD_NAME, environ, _NAMESPACE_VARIABLES)


def _matching(pattern: re.Pattern[str], environ: dict[str, str], names: tuple[str, ...]) -> str:
    """The first of the variables whose whole value is what it should be, or nothing."""
    return next((environ[name] for name in names if pattern.fullmatch(environ.get(name, ""))), "")


def _environ(pid: int) -> dict[str, str]:
    """Those variables of a process that are of any use here; none where it is not ours to read."""
    pairs = (entry.partition(b"=") for entry in _read_file(f"/proc/{pid}/environ").split(b"\0"))
    decoded = ((name.decode(errors="replace"), value) for name, _, value in pairs)
    return {name: value.decode(errors="replace") for name, value in decoded if name in _WANTED}


def read_stat(pid: int) -> tuple[str, int, str] | None:
    """(comm, start time in clock ticks since boot, state letter) from /proc/PID/stat, or None when it has gone."""
    text = _read_file(f"/proc/{pid}/stat").decode(errors="replace")
    comm_end = text.rfind(")")  # comm may itself hold parentheses and spaces
    fields = text[comm_end + 2 :].split()
    if comm_end < 0 or len(fields) < 20:
        return None
    return text[text.find("(") + 1 : comm_end], int(fields[19]), fields[0]


def _read_file(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        data = b""
        while chunk := os.read(descriptor, 65536):
            data += chunk
    except OSError:
        return b""
    finally:
        os.close(descriptor)
    return data
