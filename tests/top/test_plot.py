"""Curves and bars, cell by cell."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuwatch.top.plot import PEAK, bar, plot, split_bar


def test_newest_at_the_right_and_each_cell_an_eighth():
    assert plot([0.0, 0.25, 0.5, 1.0], 6, 1) == ["  ▁▂▄█"]
    assert plot([0.5, 1.0], 2, 2) == [" █", "██"]
    assert plot([0.1, 0.2, 0.9], 2, 1) == ["▂▇"]


def test_what_was_not_measured_is_blank_and_zero_is_not():
    assert plot([None, 0.0, None], 3, 1) == [" ▁ "]


def test_the_peak_is_a_line_at_its_height_where_the_curve_leaves_room():
    rows = plot([0.2, 0.2, 1.0], 5, 4, peak_ratio=0.6)
    assert rows[1] == PEAK * 4 + "█"
    assert PEAK not in "".join(rows[:1] + rows[2:])
    assert plot([], 3, 2, peak_ratio=1.0) == [PEAK * 3, "   "]
    assert plot([], 3, 2, peak_ratio=0.0) == ["   "] * 2, "nothing has no peak"
    assert PEAK not in plot([0.2], 3, 1, peak_ratio=0.9)[0]


@given(st.lists(st.none() | st.floats(-1, 3)), st.integers(0, 50), st.integers(1, 8), st.none() | st.floats(-1, 3))
def test_a_plot_is_always_as_large_as_asked(ratios, width, height, peak):
    assert [len(row) for row in plot(ratios, width, height, peak)] == [width] * height


@pytest.mark.parametrize(
    ("ratio", "text"), [(0.0, "····"), (0.5, "██··"), (0.53125, "██▏·"), (1.0, "████"), (7.0, "████"), (None, "    ")]
)
def test_bars(ratio, text):
    assert bar(ratio, 4) == text


def test_a_split_bar_fills_its_width():
    thirds = [(1 / 3, "a"), (1 / 3, "b"), (1 / 3, "c")]
    assert split_bar(thirds, 10) == "aaabbbbccc"
    assert split_bar([(0.5, "a")], 4) == "aa··"
