"""Colours only where they are wanted; sparklines, bars and quantities."""

import math
import os
import pty
import subprocess
import sys

import pytest

from gpuwatch.cli.terminal import bar, quantity_of_bytes, quantity_of_seconds, sparkline


def on_a_terminal(tmp_path, environ, *arguments):
    """What the command writes to a pseudo-terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "gpuwatch", *arguments]
    subprocess.run(command, cwd=tmp_path, env=environ, stdout=theirs, stdin=subprocess.DEVNULL, timeout=60, check=True)
    os.close(theirs)
    seen = b""
    try:
        while piece := os.read(ours, 65536):
            seen += piece
    except OSError:  # the other end is closed: that is how a terminal says end of file
        pass
    os.close(ours)
    return seen.decode()


def test_colours_on_a_terminal_but_not_in_a_pipe_nor_with_no_color(gpuwatch, recorder, tmp_path, environ):
    recorder.run("digits", ending=None)
    plain = {name: value for name, value in environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}}
    terminal = {**plain, "TERM": "xterm"}
    assert "\x1b[32m\x1b[1mlive" in on_a_terminal(tmp_path, terminal, "status")
    assert "\x1b" not in on_a_terminal(tmp_path, {**terminal, "NO_COLOR": "1"}, "status")
    assert "\x1b" not in on_a_terminal(tmp_path, {**plain, "TERM": "dumb"}, "status")
    assert "\x1b" not in gpuwatch("status", env=plain).stdout
    assert "\x1b[32m\x1b[1mlive" in gpuwatch("status", env={**plain, "FORCE_COLOR": "1"}).stdout
    assert "\x1b" not in gpuwatch("status", env={**plain, "FORCE_COLOR": "1", "NO_COLOR": "1"}).stdout


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([], ""),
        ([5.0], "▁"),
        ([1.0, 1.0], "▁▁"),
        ([0.0, 7.0, 3.5], "▁█▅"),
        ([1.0, 10.0, 1e7], "▁▂█"),  # by logarithm
        ([0.0, 10.0, 1000.0], "▁▁█"),  # not where there is a zero
        ([1.0, math.nan, 2.0, math.inf, None], "▁!█! "),
        ([math.nan], "!"),
    ],
)
def test_sparkline(values, drawn):
    assert sparkline(values) == drawn


def test_a_long_series_is_averaged_into_its_width():
    assert sparkline([0.0] * 50 + [1.0] * 50, width=4) == "▁▁██"
    assert len(sparkline(list(range(1000)), width=40)) == 40
    assert sparkline([0.0, math.nan, 1.0, 1.0], width=2) == "!▁"


@pytest.mark.parametrize("shares", [(0.39, 0.08, 0.06, 0.07, 0.40), (1.0, 0, 0, 0, 0), (0.2,) * 5, (1 / 3, 1 / 3, 1 / 3, 0, 0)])
def test_a_bar_is_as_wide_as_told_and_each_share_at_most_a_cell_off(shares):
    drawn = bar(list(zip(shares, "abcde", strict=True)), 40)
    assert len(drawn) == 40
    for share, fill in zip(shares, "abcde", strict=True):
        assert abs(drawn.count(fill) - 40 * share) <= 1


def test_quantities():
    assert [quantity_of_bytes(v) for v in (0, 1023, 1536, 3 * 2**30, 5 * 2**40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "3.0 GiB",
        "5.0 TiB",
    ]
    seconds = (0.0, 0.00034, 0.0123, 4.21, 185, 8040, 60 * 3600)
    assert [quantity_of_seconds(v) for v in seconds] == [
        "0 us",
        "340 us",
        "12.3 ms",
        "4.2 s",
        "3 min 5 s",
        "2 h 14 min",
        "2 d 12 h",
    ]
