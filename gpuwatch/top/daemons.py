"""Finds the daemons of this user and asks them over HTTP."""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import msgspec

from gpuwatch import announcement, paths
from gpuwatch.state import summary
from gpuwatch.state.node_report import NodeReport
from gpuwatch.top.reading import Job

if TYPE_CHECKING:
    from gpuwatch.announcement import Announcement

#: The daemon answers from memory within milliseconds; one that is stopped must not hold us up.
TIMEOUT_SECONDS = 2.0
#: A run's summary is 30 kB with its history, and a daemon holds 64 live runs of a user.
MAX_ANSWER_BYTES = 64 << 20


class Answer(NamedTuple):
    """What one daemon knows."""

    node: NodeReport
    jobs: list[Job]


def announced() -> list[Announcement]:
    """The daemons that said where they serve: the one that jobs call, then those that `gpuwatch run` keeps for one run."""
    main = paths.socket_to_call()
    found = [announcement.read(main)]
    for folder in dict.fromkeys((main.parent, paths.user_socket().parent)):
        for file in sorted(folder.glob("run-*.sock.json"), key=lambda file: file.name):
            private = announcement.read(file.with_suffix(""))
            # One that was killed leaves its file behind, and somebody else may have its port by now.
            if private is not None and Path(f"/proc/{private.pid}").exists():
                found.append(private)
    return [daemon for daemon in found if daemon is not None and daemon.metrics_url]


def ask(metrics_url: str) -> Answer | None:
    """Everything that the daemon behind this address shows, or None when none answers there."""
    node, runs = _get(metrics_url, "/api/gpus"), _get(metrics_url, "/api/runs")
    if node is None or runs is None:
        return None
    try:
        summaries = [summary.from_tree(run) for run in msgspec.json.decode(runs, type=list[dict[str, object]])]
        return Answer(
            msgspec.json.decode(node, type=NodeReport),
            [Job(known, known.status) for known in summaries if known is not None],
        )
    except (msgspec.MsgspecError, RecursionError):
        return None


def _get(metrics_url: str, path: str) -> bytes | None:
    place = urlsplit(metrics_url)
    # Not urllib: a proxy of the environment has no business between us and a daemon of this machine.
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read(MAX_ANSWER_BYTES + 1)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return body if response.status == http.HTTPStatus.OK and len(body) <= MAX_ANSWER_BYTES else None
