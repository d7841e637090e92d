"""Lines that fit, and numbers in few cells."""

import math

from gpuwatch.top.lines import Segment, cut, fitted, padded, plain, width_of
from gpuwatch.top.quantities import number, of_bytes, percent


def test_what_is_too_long_ends_in_an_ellipsis_and_what_is_short_is_filled():
    line = [Segment("abc", "red"), Segment("def")]
    assert [plain(cut(line, width)) for width in (6, 5, 3, 0)] == ["abcdef", "abcd…", "abc", ""]
    assert plain(padded(line, 8)) == "abcdef  "
    assert width_of(padded(line, 4)) == 4


def test_the_least_important_part_gives_way_first():
    parts = [(0, [Segment("name")]), (9, [Segment("trifle")]), (1, [Segment("fact")]), (1, [])]
    assert plain(fitted(parts, 30)) == "name  trifle  fact"
    assert plain(fitted(parts, 17)) == "name  fact"
    assert plain(fitted(parts, 9)) == "name"
    assert plain(fitted(parts, 3)) == "na…"


def test_numbers():
    assert [of_bytes(value) for value in (None, 0, 999, 1 << 20, 43.2 * (1 << 30), 500 << 30, 2 << 40)] == (
        ["-", "0B", "999B", "1M", "43.2G", "500G", "2.0T"]
    )
    assert [number(value) for value in (None, 0.0, 65536.0, 0.00123456, 2e9, math.nan, math.inf)] == (
        ["-", "0", "65536", "0.00123", "2e+09", "nan", "inf"]
    )
    assert (percent(None), percent(0.976)) == ("-", "98%")
