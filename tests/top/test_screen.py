"""How a screen is shared out, and the head of it."""

import dataclasses

import msgspec
import pytest

from gpuwatch.top import screen
from gpuwatch.top.history import History
from gpuwatch.top.lines import plain


@pytest.mark.parametrize("height", [10, 22, 48])
@pytest.mark.parametrize("gpus", [0, 1, 2, 8, 16])
@pytest.mark.parametrize("width", [80, 160])
def test_everything_gets_rows_and_nothing_more_than_there_are(width, height, gpus):
    shares = screen.share_out(width, height, gpus, 6)
    assert shares.gpus + shares.jobs < height
    assert shares.gpus >= 1
    assert shares.jobs >= 2
    blocks = -(-gpus // shares.gpu_columns)
    if shares.plot_rows:
        assert shares.gpus == blocks * (shares.plot_rows + 2)


def test_one_gpu_on_a_small_screen_has_plots_and_eight_have_a_line_each():
    assert screen.share_out(80, 22, 1, 3).plot_rows >= 5
    small, wide = screen.share_out(80, 22, 8, 3), screen.share_out(160, 48, 8, 3)
    assert (small.plot_rows, small.gpus) == (0, 8)
    assert (wide.gpu_columns, wide.plot_rows >= 3) == (2, True)


def test_gpus_side_by_side_are_as_wide_as_the_screen(trained):
    shares = screen.share_out(160, 48, 3, 3)
    lines = screen.gpus(trained.reading(), History(), 160, shares)
    assert shares.gpu_columns == 2
    assert len(lines) == shares.gpus
    assert plain(lines[0]).index("1 H100") == 81


def test_the_headline_says_where_the_numbers_come_from(trained):
    assert "daemon 1  CPU " in plain(screen.headline(trained.reading(), 80))
    stale = screen.headline(trained.reading(note="the daemon does not answer", stale=True), 80)
    assert any(segment.style == "bold red" and "does not answer" in segment.text for segment in stale)
    assert len(plain(screen.headline(trained.reading(), 30))) <= 30


@pytest.mark.parametrize(
    ("state", "message", "said"),
    [
        ("absent", "no NVIDIA driver here", "no GPU: no NVIDIA driver here"),
        ("paused", "", "no GPU: sampling of GPUs is paused"),
        ("off", "", "no GPU: this daemon does not sample GPUs (sampling.gpus is false)"),
    ],
)
def test_no_gpu_says_why(trained, state, message, said):
    node = msgspec.structs.replace(trained.node, gpus=[], state=state, message=message)
    reading = dataclasses.replace(trained.reading(), node=node)
    assert plain(screen.gpus(reading, History(), 80, screen.share_out(80, 22, 0, 3))[0]) == said
