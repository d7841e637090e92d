"""What a GPU's lines say, on data that the real NVML child read from the fake driver."""

import pytest

from gpuwatch.top import gpu_lines
from gpuwatch.top.history import Curves, History
from gpuwatch.top.lines import plain, width_of
from gpuwatch.top.plot import PEAK


def text(lines):
    return "\n".join(plain(line) for line in lines)


def curves_of(trained, gpu):
    history = History()
    for at in (1.0, 2.0):
        history.add(trained.reading(at=at))
    return history.curves(gpu.uuid)


@pytest.mark.parametrize("width", [40, 76, 80, 158])
@pytest.mark.parametrize("plot_rows", [0, 1, 5])
def test_a_block_has_exactly_the_size_that_it_was_given(trained, width, plot_rows):
    for gpu in trained.node.gpus:
        block = gpu_lines.block(gpu, curves_of(trained, gpu), width, plot_rows)
        assert [width_of(line) for line in block] == [width] * (plot_rows + 2 if plot_rows else 1)


def test_the_block_of_a_busy_gpu_says_everything_that_is_asked_for(trained):
    gpu = trained.node.gpus[0]
    told = text(gpu_lines.block(gpu, curves_of(trained, gpu), 120, 4))
    for part in ("0 H100 80GB HBM3", "699/700 W", "44/46°C", "sm 900/1980 mem 2619/2619 MHz", "throttled: power cap"):
        assert part in told, part
    assert "util 97%  peak 97% in 60s" in told
    assert "mem 40.0G/80.0G  peak 40.0G in 60s" in told
    rows = told.splitlines()[2:]
    assert [row[58] for row in rows] == ["▇", "█", "█", "█"], "the newest of the utilization is at the right of its half"
    assert rows[0].startswith(PEAK), "97 % is in the highest of four rows"
    assert rows[1][61:118] == PEAK * 57, "half of the memory is in the second row"
    assert [row[-2:] for row in rows] == ["  ", PEAK * 2, "██", "██"]


def test_a_peak_that_the_curve_has_missed_is_marked_all_the_same(trained):
    gpu = trained.node.gpus[0]
    gpu = type(gpu)(**{**{name: getattr(gpu, name) for name in gpu.__struct_fields__}, "values": dict(gpu.values)})
    gpu.values["memory_used_peak_bytes"] = {"10s": 20 << 30, "60s": 70 << 30, "300s": 75 << 30}
    told = text(gpu_lines.block(gpu, Curves(), 80, 4))
    assert "peak 70.0G in 60s" in told
    assert PEAK * 39 in told.splitlines()[2]
    wide = text(gpu_lines.block(gpu, Curves(), 158, 4))
    assert "peak 75.0G in 300s" in wide, "a plot of 78 seconds is not covered by the peak of 60"


def test_one_line_a_gpu_keeps_what_matters_when_it_is_narrow(trained):
    wide, narrow = (text(gpu_lines.block(trained.node.gpus[0], Curves(), width, 0)) for width in (160, 76))
    assert "throttled: power cap" in narrow
    assert "40.0G/80.0G" in narrow
    assert "sm 900" in wide
    assert "sm 900" not in narrow


def test_a_gpu_that_is_down_says_why_and_shows_no_numbers(trained):
    gpu = trained.node.gpus[2]
    for plot_rows in (0, 3):
        told = text(gpu_lines.block(gpu, Curves(), 80, plot_rows))
        assert "down: GPU is lost" in told
        assert "%" not in told
        assert " W" not in told
