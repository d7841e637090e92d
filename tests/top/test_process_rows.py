"""Rows of the process table: whose they are, their order, what a filter keeps, which columns fit."""

import dataclasses

import pytest

from gpuwatch.top import process_rows, screen
from gpuwatch.top.history import History
from gpuwatch.top.lines import plain
from gpuwatch.top.process_rows import SORTABLE, cells, columns, matching, ordered
from tests.top.conftest import GIB


@pytest.fixture
def rows(trained):
    return process_rows.rows(trained.reading(), History())


def test_every_process_of_every_gpu_with_the_run_that_its_hooks_report(trained, rows):
    said = {(row.gpu, row.pid, row.memory_bytes, row.job) for row in rows}
    assert said == {
        ("0", trained.trainer_pid, 39 * GIB, "digits"),
        ("0", trained.other_pid, GIB, ""),
        ("1", trained.other_pid, 8 * GIB, ""),
    }
    trainer = next(row for row in rows if row.job)
    assert trainer.sm_utilization_ratio == 0.95
    assert trainer.resident_bytes > 10 << 20
    assert trainer.start_ticks > 0
    assert next(row for row in rows if not row.job).command == "sleep"


def test_a_training_process_on_no_gpu_has_a_row_too(trained):
    (job,) = trained.jobs
    node = type(trained.node)(**{**{name: getattr(trained.node, name) for name in trained.node.__struct_fields__}, "gpus": []})
    reading = dataclasses.replace(trained.reading(), node=node)
    (row,) = process_rows.rows(reading, History())
    assert (row.gpu, row.pid, row.job, row.command) == ("", trained.trainer_pid, "digits", job.summary.hello.program)
    assert cells(row)["GPU"] == "-"


@pytest.mark.parametrize("column", SORTABLE)
def test_every_column_sorts_both_ways_and_unknown_values_stay_last(rows, column):
    numbers = ("sm_utilization_ratio", "memory_bytes", "memory_peak_bytes", "cpu_ratio", "resident_bytes")
    unknown = dataclasses.replace(rows[0], gpu="", pid=1, user="", command="", job="", **dict.fromkeys(numbers))
    up, down = (ordered([*rows, unknown], column, largest_first=largest) for largest in (False, True))
    known = [row for row in down if cells(row)[column] not in ("-", "")]
    assert down[: len(known)] == known
    assert {row.key for row in up} == {row.key for row in down}
    if column == "PID":
        assert (up[0], down[-1]) == (unknown, unknown)
    else:
        assert unknown in up[len(known) :]
        assert [cells(row)[column] for row in up[: len(known)]] == [cells(row)[column] for row in reversed(known)]


def test_order_by_memory_and_by_gpu(rows):
    assert [row.memory_bytes // GIB for row in ordered(rows, "MEM", largest_first=True)] == [39, 8, 1]
    assert [row.gpu for row in ordered(rows, "GPU", largest_first=False)] == ["0", "0", "1"]
    many = [dataclasses.replace(rows[0], gpu=gpu) for gpu in ("10", "2", "0:1", "0")]
    assert [row.gpu for row in ordered(many, "GPU", largest_first=False)] == ["0", "0:1", "2", "10"]


def test_filter(trained, rows):
    assert len(matching(rows, "")) == 3
    assert {row.gpu for row in matching(rows, "gpu:1")} == {"1"}
    assert [row.pid for row in matching(rows, "DIGITS")] == [trained.trainer_pid]
    assert len(matching(rows, "sleep gpu:0")) == 1
    assert matching(rows, "sleep digits") == []


def test_columns_fit_and_the_important_ones_stay(rows):
    for width in (30, 45, 60, 80, 160):
        widths = columns([cells(row) for row in rows], width)
        assert {"GPU"} <= set(widths)
        assert sum(widths.values()) + 2 * len(widths) <= width
        assert max(len(plain(line)) for line in screen.processes(rows, width)) <= width
    assert {"PID", "SM", "MEM", "JOB", "COMMAND"} <= set(columns([cells(row) for row in rows], 60))
    assert "CONTAINER" not in columns([cells(row) for row in rows], 160), "nobody has one"


def test_processor_use_comes_from_two_readings(trained):
    history = History()
    host = trained.node.host
    history.add(trained.reading(at=1.0))
    assert history.cpu_ratio(trained.trainer_pid) is None
    process = host.processes[trained.trainer_pid]
    later = type(host)(
        monotonic_ns=host.monotonic_ns + 2_000_000_000, cpu_utilization_ratio=0.5, memory_used_bytes=1, memory_size_bytes=2,
        processes={trained.trainer_pid: type(process)(process.cpu_seconds + 3.0, process.resident_bytes, None)},
    )  # fmt: skip
    node = type(trained.node)(**{**{n: getattr(trained.node, n) for n in trained.node.__struct_fields__}, "host": later})
    history.add(dataclasses.replace(trained.reading(at=2.0), node=node))
    assert history.cpu_ratio(trained.trainer_pid) == pytest.approx(1.5)
    assert len(history.curves(trained.node.gpus[0].uuid).utilization) == 2
    history.add(dataclasses.replace(trained.reading(at=2.0), node=node))
    assert len(history.curves(trained.node.gpus[0].uuid).utilization) == 2, "the same reading again"
