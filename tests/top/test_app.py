"""The live view under Textual's own Pilot: a real daemon's numbers on the screen, keys, sizes, and the dialog."""

import asyncio
import signal
import subprocess
import sys

import pytest
from textual.widgets import Input

from gpuwatch.top.app import TopApp
from gpuwatch.top.process_table import ProcessTable
from gpuwatch.top.signal_dialog import SignalDialog
from tests.top.conftest import Scene


class Still:
    """A source whose reading does not change by itself: what the feed does has its own tests."""

    def __init__(self, reading):
        self.reading = reading
        self.closed = False

    def turn(self):
        """Nothing is due."""

    def close(self):
        self.closed = True


def screen_text(app):
    """The screen as it is painted, row by row."""
    width, height = app.size
    strips = app.screen._compositor.render_strips()
    return "\n".join(strip.text[:width] for strip in strips[:height])


async def until(pilot, condition, seconds=20.0):
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, screen_text(pilot.app)
        await pilot.pause(0.05)


def on_screen(trained, act, size=(80, 24), **options):
    """Runs `act(app, pilot)` once the reading is painted; the app."""

    async def run():
        app = TopApp(Still(trained.reading()), **options)
        async with app.run_test(size=size, notifications=True) as pilot:
            await until(pilot, lambda: "digits" in screen_text(app) and "quit" in screen_text(app))
            await act(app, pilot)
        return app

    return asyncio.run(run())


@pytest.mark.parametrize("size", [(80, 24), (160, 50)])
def test_everything_is_on_the_screen(trained, size):
    async def look(app, pilot):
        text = screen_text(app)
        for part in (
            "daemon 1", "CPU", "0 H100 80GB HBM3", "util 97%", "peak 97%", "699/700 W", "throttled: power cap",
            "down: GPU is lost", "digits", "live", "1,234", "0.00081", "65536", "▒▒▒▒▒▓▓▓▓▓", "exploding_gradient from step 2",
            "MEM▼", "39.0G", "sleep", "send signal",
        ):  # fmt: skip
            assert part in text, f"{part!r} is not in\n{text}"
        rows = text.splitlines()
        assert len(rows) == size[1]
        assert [row for row in rows if "quit" in row] == [rows[-1]]
        table = app.query_one(ProcessTable)
        assert table.row_count == 3
        assert table.size.height >= 4

    assert on_screen(trained, look, size)._source.closed


def test_the_view_follows_the_terminals_size(trained):
    async def resize(app, pilot):
        await pilot.resize_terminal(160, 50)
        await until(pilot, lambda: "LOST" in screen_text(app))
        first = next(row for row in screen_text(app).splitlines() if "0 H100" in row)
        assert "1 H100" in first, "two GPUs beside each other"
        await pilot.resize_terminal(50, 12)
        await until(pilot, lambda: "H100" not in screen_text(app))
        assert "digits" in screen_text(app)
        assert app.query_one(ProcessTable).size.height >= 2

    on_screen(trained, resize)


def test_sort_reverse_and_filter(trained):
    async def keys(app, pilot):
        table = app.query_one(ProcessTable)
        assert [row.memory_bytes >> 30 for row in table.processes] == [39, 8, 1]
        await pilot.press("r")
        assert [row.memory_bytes >> 30 for row in table.processes] == [1, 8, 39]
        await pilot.press("s")
        await until(pilot, lambda: "SM▼" in screen_text(app))
        await pilot.press("slash", *"gpu:1")
        await pilot.press("enter")
        assert [row.gpu for row in table.processes] == ["1"]
        await pilot.press("slash", *"gpu:1 digits")
        assert table.processes == []
        await pilot.press("escape")
        assert len(table.processes) == 3
        assert app.focused is table
        assert not app.query_one("#filter", Input).has_class("open")

    on_screen(trained, keys)


def test_the_cursor_stays_on_its_process_when_rows_move(trained):
    async def move(app, pilot):
        await pilot.press("down")
        chosen = app.query_one(ProcessTable).chosen
        await pilot.press("r", "s", "s")
        assert app.query_one(ProcessTable).chosen == chosen

    on_screen(trained, move)


@pytest.fixture
def victim(trained):
    """A scene whose first row is a process that may be killed, and that process."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"], stdout=subprocess.PIPE
    )
    process.stdout.readline()
    with open(f"/proc/{process.pid}/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    gpus = [*trained.node.gpus]
    busy = type(gpus[0].processes[0])(pid=process.pid, start_ticks=ticks, memory_bytes=60 << 30, command="python3", user="me")
    facts = {name: getattr(gpus[0], name) for name in gpus[0].__struct_fields__}
    gpus[0] = type(gpus[0])(**{**facts, "processes": [busy]})
    node = type(trained.node)(**{**{n: getattr(trained.node, n) for n in trained.node.__struct_fields__}, "gpus": gpus})
    yield Scene(node, trained.jobs, trained.trainer_pid, trained.other_pid), process
    process.kill()
    process.communicate(timeout=20)


def test_a_signal_only_after_a_confirmation(victim):
    scene, process = victim

    async def send(app, pilot):
        await pilot.press("k")
        await until(pilot, lambda: isinstance(app.screen, SignalDialog))
        await until(pilot, lambda: f"Signal process {process.pid} (python3, me, GPU 0)?" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: not isinstance(app.screen, SignalDialog))
        await pilot.press("k")
        await until(pilot, lambda: isinstance(app.screen, SignalDialog))
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, SignalDialog))
        assert process.poll() is None, "cancel is what is chosen at first, and escape is cancel"
        await pilot.press("k")
        await until(pilot, lambda: isinstance(app.screen, SignalDialog))
        await pilot.press("down", "down", "enter")
        await until(pilot, lambda: process.poll() is not None)
        await until(pilot, lambda: f"SIGTERM sent to {process.pid}" in screen_text(app))

    on_screen(scene, send, size=(100, 30))
    assert process.wait(20) == -signal.SIGTERM


def test_never_a_signal_with_readonly(victim):
    scene, process = victim

    async def press(app, pilot):
        assert "signal" not in screen_text(app)
        await pilot.press("k")
        await pilot.pause(0.3)
        assert not isinstance(app.screen, SignalDialog)
        app._send(app.query_one(ProcessTable).chosen, signal.SIGKILL)
        await pilot.pause(0.2)

    on_screen(scene, press, readonly=True)
    assert process.poll() is None


def test_names_with_brackets_are_text(trained):
    job = trained.jobs[0]
    facts = {name: getattr(job.summary, name) for name in job.summary.__struct_fields__}
    odd = type(job)(type(job.summary)(**{**facts, "run": "[red]digits[/]"}), "live")
    reading = trained.reading([odd])

    async def run():
        app = TopApp(Still(reading))
        async with app.run_test(size=(100, 30)) as pilot:
            await until(pilot, lambda: "[red]digits[/]" in screen_text(app))

    asyncio.run(run())
