"""The bounded window against a plain list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpuwatch.state.series import Window


@given(st.integers(1, 9), st.lists(st.floats(allow_nan=False), max_size=40))
def test_a_window_is_the_end_of_a_list(capacity: int, values: list[float]) -> None:
    window = Window(capacity)
    points: list[tuple[int, float]] = []
    for step, value in enumerate(values):
        window.append(step, value)
        points = [*points, (step, value)][-capacity:]
        assert window.last() == points[-1]
    assert list(zip(window.steps(), window.values(), strict=True)) == points
    assert len(window) == len(points)


def test_an_empty_window_has_no_last_point() -> None:
    assert Window(3).last() is None


def test_means_cover_the_window_in_equal_stretches() -> None:
    window = Window(100)
    for step in range(8):
        window.append(step, float(step))
    assert window.means(4) == [0.5, 2.5, 4.5, 6.5]
    assert window.means(100) == [float(step) for step in range(8)]
    assert Window(3).means(4) == []
