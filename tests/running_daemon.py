"""A real daemon in a process of its own, ready when the constructor returns."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from gpuwatch.state import summary

ROOT = Path(__file__).resolve().parent.parent

#: How many times longer than here things may take: an emulated machine (tests/attach/arm64) says 10.
PATIENCE = float(os.environ.get("GPUWATCH_TEST_PATIENCE", "1"))

SERVE = """
import json, sys
from gpuwatch import config
from gpuwatch.service import logs
from gpuwatch.daemon import Daemon
flags = json.loads(sys.argv[1])
settings = config.load(environ={}, flags=flags)
logs.set_up(settings.daemon.log_format, settings.daemon.log_level)
raise SystemExit(Daemon(settings, lambda: config.load(environ={}, flags=flags)).run())
"""


def wait_until(condition, seconds=20.0):
    """The first true value of `condition()`; fails after `seconds`."""
    deadline = time.monotonic() + seconds * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


class RunningDaemon:
    """Listens below `folder`; flags as config.load takes them. `prefix`: a command that runs the daemon (strace, unshare)."""

    def __init__(self, folder, prefix=(), environ=None, code=SERVE, **flags):
        self.folder = Path(folder)
        self.socket = self.folder / "gpuwatch.sock"
        self.logdir = Path(flags.pop("logdir", self.folder / "runs"))
        self.flags = {
            "daemon.logdir": str(self.logdir),
            "daemon.socket": str(self.socket),
            "daemon.listen": "127.0.0.1:0",
            "sampling.gpus": False,
            **{key.replace("__", "."): value for key, value in flags.items()},
        }
        self.log = self.folder / "daemon.log"
        notify = self.folder / "notify"
        notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices, self.log.open("ab") as log:
            notices.bind(str(notify))
            notices.settimeout(0.1)
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-c", code, json.dumps(self.flags)],
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "NOTIFY_SOCKET": str(notify), **(environ or {})},
            )
            self.said = wait_until(lambda: self._hear(notices), 60)
        self.metrics_url = self.said["X_GPUWATCH_METRICS"]

    def _hear(self, notices):
        try:
            return dict(line.split("=", 1) for line in notices.recv(4096).decode().splitlines())
        except TimeoutError:
            assert self.process.poll() is None, self.log.read_text()
            return None

    def metrics(self):
        """The exposition as {series: value}; a series is written as in the exposition."""
        with urllib.request.urlopen(self.metrics_url, timeout=20) as response:
            lines = response.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line and line[0] != "#"}

    def runs(self):
        """Every run.json, by directory."""
        found = {}
        for path in self.logdir.rglob("run.json"):
            known = summary.decode(path.read_bytes())
            if known is not None:
                found[known.directory] = known
        return found

    def signal(self, number):
        self.process.send_signal(number)

    def memory_bytes(self, kind="Pss"):
        """Of the daemon's own process, from smaps_rollup."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(kind + ":"))

    def end(self, seconds=30):
        """SIGTERM; the exit status."""
        self.process.terminate()
        return self.process.wait(seconds)

    def kill(self):
        """SIGKILL, and wait."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(20)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
