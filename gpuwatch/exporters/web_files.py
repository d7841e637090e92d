"""The web page's own files, read from disk when they are asked for: a daemon that nobody looks at holds none of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpuwatch.exporters.http import Handler, Response

if TYPE_CHECKING:
    from gpuwatch.exporters.request import Request

FOLDER = Path(__file__).resolve().parent.parent / "web"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    "": "text/plain; charset=utf-8",
}


def routes() -> dict[str, Handler]:
    """Path -> handler for every file of the folder, which is listed once: a request names a path, never a file."""
    files = sorted(path for path in FOLDER.rglob("*") if path.is_file() and path.suffix in _TYPES)
    found = {f"/web/{path.relative_to(FOLDER).as_posix()}": _serve(path) for path in files}
    return {**found, "/": _serve(FOLDER / "index.html")}


def _serve(path: Path) -> Handler:
    def handler(_: Request) -> Response:
        return Response(path.read_bytes(), _TYPES[path.suffix])

    return handler
