"""The log: one line an event, in text or JSON, and never a flood."""

import io
import json
import logging
import sys

import pytest

from gpuwatch.service import logs


@pytest.fixture
def lines(monkeypatch):
    """Log as the daemon does; the lines since the last look."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level

    def start(log_format="text", level="info"):
        stderr = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stderr)
        root.handlers[:] = []
        logs.set_up(log_format, level)

        def read():
            said = stderr.getvalue().splitlines()
            stderr.seek(0)
            stderr.truncate()
            return said

        return read

    yield start
    root.handlers[:] = before
    root.setLevel(level)


def fail():
    raise ValueError("what\never")


def test_one_line_even_of_an_exception_and_of_a_message_with_line_ends(lines):
    read = lines()
    log = logging.getLogger("gpuwatch.intake.peers")
    log.warning("first\nsecond")
    try:
        fail()
    except ValueError:
        log.exception("it failed")
    first, second = read()
    assert first.endswith("warning intake.peers: first second")
    assert second.partition(" error intake.peers: ")[2].startswith("it failed: ValueError: what ever at test_logs.py:")


def test_json_lines(lines):
    read = lines("json")
    logging.getLogger("gpuwatch.daemon").info('said "%s"', "ü")
    (line,) = read()
    assert json.loads(line).items() >= {"level": "info", "part": "daemon", "message": 'said "ü"'}.items()


def test_levels(lines):
    read = lines(level="warning")
    logging.getLogger("gpuwatch.x").info("quiet")
    logging.getLogger("gpuwatch.x").warning("loud")
    assert len(read()) == 1


def test_a_flood_is_cut_off_and_counted_and_another_event_is_not(lines, monkeypatch):
    read = lines()
    log = logging.getLogger("gpuwatch.x")
    now = [0.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])

    def flood(times):
        for number in range(times):
            log.warning("event %d", number)

    flood(500)
    log.warning("another")
    heard = read()
    assert len(heard) == logs.BURST + 1
    assert heard[-1].endswith("another")
    now[0] += logs.WINDOW_SECONDS + 1
    flood(1)
    assert read()[0].endswith(f"event 0 ({500 - logs.BURST} more like this were left out)")


@pytest.fixture
def to_file(tmp_path):
    yield tmp_path / "daemon.log"
    for handler in logging.getLogger().handlers[:]:
        if isinstance(handler, logs.BoundedFile):
            logging.getLogger().removeHandler(handler)
            handler.close()


def test_a_log_file_is_bounded(to_file, monkeypatch):
    monkeypatch.setattr(logs, "FILE_BYTES", 10_000)
    logs.set_up("text", "info", str(to_file))
    for handler in logging.getLogger().handlers:
        handler.filters.clear()  # every line may come through
    for number in range(2000):
        logging.getLogger("gpuwatch.x").info("line %d", number)
    files = sorted(to_file.parent.glob("daemon.log*"))
    assert [file.name for file in files] == ["daemon.log", "daemon.log.1", "daemon.log.2"]
    assert all(file.stat().st_size <= 10_000 for file in files)
    assert to_file.read_text().endswith("info x: line 1999\n")


def test_two_daemons_share_a_log_file(to_file):
    logs.set_up("text", "info", str(to_file))
    to_file.rename(to_file.with_suffix(".log.1"))  # the other one has begun it anew
    logging.getLogger("gpuwatch.x").info("goes on")
    assert to_file.read_text().endswith("x: goes on\n")


def test_a_log_file_that_is_gone_for_good_costs_nothing(tmp_path, to_file, capfd):
    folder = tmp_path / "deleted"
    folder.mkdir()
    logs.set_up("text", "info", str(folder / "daemon.log"))
    (folder / "daemon.log").unlink()
    folder.rmdir()
    logging.getLogger("gpuwatch.x").info("lost")
    assert capfd.readouterr().err == ""
