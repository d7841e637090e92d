"""The daemon's log: stderr or a bounded file, one line an event, as text or as JSON, and no event too often to be read."""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import os
import sys
import time
import traceback

#: Lines of the same event (the same place in the code) within WINDOW_SECONDS; the rest are counted and told with the next.
BURST = 10
WINDOW_SECONDS = 60.0
#: A log file is begun anew at FILE_BYTES; FILES_BEHIND of its predecessors are kept as .1, .2.
FILE_BYTES = 1 << 20
FILES_BEHIND = 2


class RateLimit(logging.Filter):
    """Lets BURST lines of each event through in each window."""

    def __init__(self) -> None:
        super().__init__()
        self._windows: dict[tuple[str, int], tuple[float, int]] = {}  # place in the code -> began, lines since then

    def filter(self, record: logging.LogRecord) -> bool:
        place = (record.pathname, record.lineno)
        now = time.monotonic()
        began, lines = self._windows.get(place, (now, 0))
        if now - began >= WINDOW_SECONDS:
            if lines > BURST:
                record.msg = f"{record.msg} ({lines - BURST} more like this were left out)"
            began, lines = now, 0
        self._windows[place] = (began, lines + 1)
        return lines < BURST


class OneLine(logging.Formatter):
    """time level part: message, with an exception as its last line and where it was raised."""

    def format(self, record: logging.LogRecord) -> str:
        return (
            f"{self.formatTime(record)} {record.levelname.lower()} {record.name.removeprefix('gpuwatch.')}: {_message(record)}"
        )


class JsonLine(logging.Formatter):
    """The same as one JSON object: time (seconds since the epoch), level, part, message."""

    def format(self, record: logging.LogRecord) -> str:
        part = record.name.removeprefix("gpuwatch.")
        line = {"time": record.created, "level": record.levelname.lower(), "part": part, "message": _message(record)}
        return json.dumps(line, ensure_ascii=False)


class BoundedFile(logging.handlers.RotatingFileHandler):
    """A log file that several daemons may share: the private ones of runs in one log directory do.

    Whichever finds it full begins it anew; the others follow. A disk that is full or a folder that is gone costs the line.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, maxBytes=FILE_BYTES, backupCount=FILES_BEHIND, encoding="utf-8", errors="backslashreplace")

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            if not self._is_current():
                fresh, before = self._open(), self.stream
                self.stream = fresh
                if before is not None:
                    before.close()
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's own name
        """Nothing: where the log cannot be written, nor can the news of it."""

    def _is_current(self) -> bool:
        if self.stream is None:  # beginning anew has failed
            return False
        try:
            there = os.stat(self.baseFilename)
        except FileNotFoundError:
            return False
        ours = os.fstat(self.stream.fileno())
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        frames = traceback.extract_tb(error.__traceback__)
        where = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
        message = f"{message}: {type(error).__name__}: {error}{where}"
    return " ".join(message.splitlines())


def set_up(log_format: str, level: str, log_file: str = "") -> None:
    """Send everything of `level` and above to `log_file`, or to stderr. `log_format`: "text" or "json". Raises OSError."""
    handler = BoundedFile(log_file) if log_file else logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLine() if log_format == "json" else OneLine())
    handler.addFilter(RateLimit())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
