"""The daemon's log: stderr, one line an event, as text or as JSON, and no event more often than somebody can read."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback

#: Lines of the same event (the same place in the code) within WINDOW_SECONDS; the rest are counted and told with the next.
BURST = 10
WINDOW_SECONDS = 60.0


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


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        frames = traceback.extract_tb(error.__traceback__)
        where = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
        message = f"{message}: {type(error).__name__}: {error}{where}"
    return " ".join(message.splitlines())


def set_up(log_format: str, level: str) -> None:
    """Send everything of `level` and above to stderr. `log_format`: "text" or "json"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLine() if log_format == "json" else OneLine())
    handler.addFilter(RateLimit())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
