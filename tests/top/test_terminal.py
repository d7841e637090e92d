"""In a real terminal (tmux): painted, resized, without colours when asked, and gone without a trace."""

import shlex
import shutil
import subprocess
import sys

import pytest

from tests.running_daemon import RunningDaemon, wait_until
from tests.test_imports import subprocess_client

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")


class Terminal:
    """A tmux server of our own with one window of 80x24 that runs `command`."""

    def __init__(self, folder, command, environ):
        self._tmux = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]
        settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in environ.items())
        line = f"env {settings} {shlex.join(command)}; echo ended with $?; sleep 60"
        self.call("new-session", "-d", "-x", "80", "-y", "24", line)

    def call(self, *arguments):
        done = subprocess.run([*self._tmux, *arguments], capture_output=True, text=True, timeout=20, check=True)
        return done.stdout

    def text(self, *options):
        return self.call("capture-pane", "-p", *options)

    def rows(self, count):
        """The rows that are painted, filled up with empty ones."""
        return [*self.text().splitlines(), *[""] * count][:count]

    def shows(self, *parts, seconds=60):
        wait_until(lambda: all(part in self.text() for part in parts), seconds)


@pytest.fixture
def terminal(tmp_path):
    made = []

    def start(*arguments, **environ):
        place = {
            "GPUWATCH_SOCKET": str(tmp_path / "gpuwatch.sock"),
            "XDG_RUNTIME_DIR": str(tmp_path),
            "TERM": "screen-256color",
        }
        made.append(Terminal(tmp_path, [sys.executable, "-m", "gpuwatch", "top", *arguments], {**place, **environ}))
        return made[-1]

    yield start
    for each in made:
        each.call("kill-server")


def test_top_in_a_terminal(tmp_path, terminal):
    with RunningDaemon(tmp_path) as daemon:
        assert subprocess_client(daemon).wait(60) == 0
        view = terminal()
        run = next(iter(daemon.runs().values())).run
        view.shows(f"daemon {daemon.process.pid}", "no GPU: this daemon does not sample GPUs", run[:8], "COMMAND", "quit")
        assert "\x1b[3" in view.text("-e"), "there are colours"
        view.call("resize-window", "-x", "120", "-y", "40")
        wait_until(lambda: "quit" in view.rows(40)[39])
        daemon.end()
        view.shows("does not answer")
    with RunningDaemon(tmp_path) as again:
        view.shows(f"daemon {again.process.pid}")
        view.call("send-keys", "q")
        view.shows("ended with 0")


def test_no_colours_where_they_are_not_wanted(terminal):
    view = terminal(NO_COLOR="1")
    view.shows("top samples by itself", "no training job")
    codes = [code for piece in view.text("-e").split("\x1b[")[1:] for code in piece.partition("m")[0].split(";")]
    assert codes
    assert not {code for code in codes if code[:1] in "349" and len(code) >= 2 and code not in ("39", "49")}
