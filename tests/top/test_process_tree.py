"""The tree: GPUs, jobs under them, processes under these, children under their parents; by real processes of this host."""

import subprocess
import sys
from pathlib import Path

import pytest

from gpuwatch.top.ancestors import ancestors
from gpuwatch.top.process_rows import ProcessRow, matching, ordered
from gpuwatch.top.process_table import ProcessTable
from gpuwatch.top.process_tree import branches
from gpuwatch.top.signal_dialog import SignalDialog
from tests.running_daemon import wait_until
from tests.top.test_app import on_screen, screen_text, until

PARENT = "import subprocess, sys; child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); child.wait()"


def start_ticks(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])


@pytest.fixture
def family():
    """(pid of a parent, pid of its child)."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    wait_until(lambda: "sleep" in Path(f"/proc/{child}/comm").read_text())
    yield parent.pid, child
    subprocess.run(["kill", str(child)], check=True, timeout=20)
    parent.communicate(timeout=20)


def test_ancestors_are_those_of_the_kernel(family):
    parent, child = family
    found = ancestors([(child, start_ticks(child)), (parent, start_ticks(parent))])
    assert found[child][0] == parent
    assert found[child][1:] == found[parent]
    assert found[parent], "this test is among them"


def test_a_pid_that_is_somebody_elses_has_none(family):
    _, child = family
    assert ancestors([(child, start_ticks(child) + 1), (2**22 + 1, 5)]) == {child: (), 2**22 + 1: ()}


def row(pid, gpu="0", job="", memory=1, command="python3"):
    facts = {"sm_utilization_ratio": None, "memory_peak_bytes": None, "cpu_ratio": None, "resident_bytes": None}
    return ProcessRow(gpu=gpu, pid=pid, start_ticks=1, user="me", command=command, job=job, memory_bytes=memory << 30, **facts)


def made(trained, rows, parents=()):
    return branches(rows, trained.reading(), dict(parents), lambda found: ordered(found, "MEM", largest_first=True))


def test_jobs_stand_under_their_gpu_and_children_under_their_parent(trained):
    rows = [row(1, memory=2), row(2, memory=9), row(3, memory=1), row(4, gpu="1"), row(5, gpu="", command="train.py"), row(6)]
    rows += [row(10, job="digits:0", memory=8), row(11, gpu="1", job="digits:1"), row(12, job="digits:0", memory=4)]
    lines = made(trained, rows, {3: (77, 1), 12: (10,), 6: (12, 3)})
    assert [line.cells["PROCESS"] for line in lines] == [
        "GPU 0 H100 80GB HBM3",
        "├─ digits, step 1,234, loss 0.00081",
        "│  └─ 10 python3 (rank 0)",
        "│     └─ 12 python3 (rank 0)",
        "├─ 2 python3",
        "└─ 1 python3",
        "   └─ 3 python3",
        "      └─ 6 python3",
        "GPU 1 H100 80GB HBM3",
        "├─ digits, step 1,234, loss 0.00081",
        "│  └─ 11 python3 (rank 1)",
        "└─ 4 python3",
        "on no GPU",
        "└─ 5 train.py",
    ]
    assert [line.process.pid if line.process else None for line in lines][:4] == [None, None, 10, 12]
    assert lines[1].cells["MEM"] == "12.0G", "what its processes take together"
    assert len({line.key for line in lines}) == len(lines)


def test_what_a_filter_leaves_is_a_tree_too(trained):
    rows = [row(1, job="digits"), row(2, command="sleep"), row(3, gpu="1", command="sleep")]
    lines = made(trained, matching(rows, "sleep gpu:1"))
    assert [line.cells["PROCESS"] for line in lines] == ["GPU 1 H100 80GB HBM3", "└─ 3 sleep"]


def test_t_shows_the_tree_and_a_heading_takes_no_signal(trained):
    async def keys(app, pilot):
        table = app.query_one(ProcessTable)
        flat = {row.pid for row in table.processes}
        await pilot.press("t")
        await until(pilot, lambda: "└─ digits, step" in screen_text(app) or "├─ digits, step" in screen_text(app))
        assert {row.pid for row in table.processes} == flat
        assert table.chosen is not None, "the cursor stayed on its process"
        await pilot.press("home", "up", "up", "up", "up", "up", "up")
        assert table.chosen is None
        await pilot.press("k")
        await pilot.pause(0.3)
        assert not isinstance(app.screen, SignalDialog)
        await pilot.press("down", "down", "k")
        await until(pilot, lambda: isinstance(app.screen, SignalDialog))
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, SignalDialog))
        await pilot.press("slash", *"gpu:1", "enter")
        assert [row.gpu for row in table.processes] == ["1"]
        await pilot.press("escape", "t")
        await until(pilot, lambda: "JOB" in screen_text(app))
        assert len(table.processes) == 3

    on_screen(trained, keys, size=(120, 40))


@pytest.mark.parametrize("size", [(60, 15), (40, 10), (24, 6), (10, 3)])
def test_small_screens(trained, size):
    async def look(app, pilot):
        for keys in (["t"], ["s"], ["r"], ["t"], ["slash", "x", "escape"]):
            await pilot.resize_terminal(*size)
            await pilot.press(*keys)
            await pilot.pause(0.05)
        rows = screen_text(app).splitlines()
        assert len(rows) <= size[1]
        assert all(len(line) <= size[0] for line in rows)
        await pilot.resize_terminal(100, 30)
        await until(pilot, lambda: "digits" in screen_text(app) and "quit" in screen_text(app))

    on_screen(trained, look, size=(80, 24))
