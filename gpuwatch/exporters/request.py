"""The head of an HTTP request: bytes that anybody on this machine may send, turned into a Request or into a refusal."""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_HEAD_BYTES = 8192
END_OF_HEAD = b"\r\n\r\n"

_REQUEST_LINE = re.compile(r"([A-Z]{1,16}) (\S{1,4096}) HTTP/1\.[01]", re.ASCII)
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*", re.ASCII)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(?::\d{1,5})?", re.ASCII)


class Request(NamedTuple):
    """A request that we may answer: GET or HEAD, for one of our host names."""

    method: str
    path: str  # starts with "/"; not decoded: none of our paths needs it
    query: str  # what follows "?", or ""
    headers: dict[str, str]  # by lower-case name; repeated ones joined with ", "


class RefusedRequestError(Exception):
    """A request that gets `status` (an HTTP status code) and one sentence."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def parse(head: bytes, host_allowed: HostRule) -> Request:
    """`head`: everything up to, not including, the empty line. Raises RefusedRequestError and nothing else."""
    first, *lines = head.decode("latin-1").split("\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise RefusedRequestError(400, "not an HTTP/1 request")
    method, target = match.groups()
    headers: dict[str, str] = {}
    hosts = 0
    for line in lines:
        field = _HEADER.fullmatch(line)
        if field is None:
            raise RefusedRequestError(400, "a header line that is none")
        name, value = field[1].lower(), field[2]
        hosts += name == "host"
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if hosts != 1:
        raise RefusedRequestError(400, "a request needs exactly one Host header")
    if not host_allowed(headers["host"]):
        raise RefusedRequestError(403, "this Host is not served here: see prometheus.allowed_hosts")
    if method not in ("GET", "HEAD"):
        raise RefusedRequestError(405, "only GET and HEAD: nothing here changes anything")
    if not target.startswith("/"):
        raise RefusedRequestError(400, "a request target starts with /")
    path, _, query = target.partition("?")
    return Request(method, path, query, headers)


class HostRule:
    """Which Host headers are answered. A page of another site whose name was re-bound to us sends that site's name.

    Loopback names and `names` always; any address in digits when `any_address`, since a name is what re-binding needs.
    """

    def __init__(self, names: list[str], *, any_address: bool = False) -> None:
        self._names = {"localhost", "127.0.0.1", "[::1]", *(name.lower() for name in names)}
        self._any_address = any_address

    def __call__(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].lower()
        return name in self._names or (self._any_address and (name[0] == "[" or re.fullmatch(r"[0-9.]+", name) is not None))
