"""The command as a user starts it, runs that a real State recorded, and a socket of one's own."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpuwatch_hooks import wire

from gpuwatch.state.identity import Hello, Identity
from gpuwatch.state.store import State
from tests.state.recorded import slots, step_payload

ROOT = Path(__file__).resolve().parents[2]
LOOP = ROOT / "tests" / "hooks" / "lr_loop.py"


@pytest.fixture
def environ(tmp_path):
    """An environment in which no daemon of this machine and no setting of its user is found."""
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GPUWATCH", "NOTIFY", "XDG_"))}
    home = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(runtime), "GPUWATCH_SOCKET": str(runtime / "gpuwatch.sock")}
    return {**kept, **home, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}


@pytest.fixture
def gpuwatch(tmp_path, environ):
    """gpuwatch("runs", "--json") runs the real command in tmp_path: a CompletedProcess with text."""

    def call(*arguments, **options):
        settings = {"cwd": tmp_path, "env": environ, "capture_output": True, "text": True, "timeout": 120}
        if "input" not in options:
            settings["stdin"] = subprocess.DEVNULL
        command = [sys.executable, "-m", "gpuwatch", *map(str, arguments)]
        return subprocess.run(command, check=False, **{**settings, **options})

    return call


def own_identity():
    """This process, as the kernel names it: a run that it makes is live."""
    stat = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return Identity(os.geteuid(), os.getpid(), int(stat[19]))


class Recorder:
    """Writes runs as the daemon does, from records as the hooks write them."""

    def __init__(self, logdir):
        self.logdir = logdir
        self.state = State(str(logdir))

    def run(self, name, *, steps=3, ending="exit", identity=None, token="t", rank=0, world_size=1, fields=None, finding=None):
        """One process of a run; `ending` None leaves it live. Each step has `fields` besides its loss of 1/step."""
        now = {"monotonic_ns": time.monotonic_ns(), "wall_ns": time.time_ns()}
        about = {"program": "train", "python": "3.11.7", "torch": "2.13.0", "device": "cpu", "token": token}
        hello = Hello(run=name, rank=rank, world_size=world_size, ring_id=time.monotonic_ns(), **now, **about)
        run = self.state.open_run(hello, identity or own_identity())
        payloads = [
            (wire.KIND_STEP, step_payload(step, {"loss": 1 / step, "step_seconds": 0.25, **(fields or {})}))
            for step in range(1, steps + 1)
        ]
        if ending is not None:
            payloads.append((wire.KIND_END, wire.END_HEAD.pack(steps, wire.END_REASONS.index(ending))))
        self.state.ring(run, slots(payloads))
        if finding is not None:
            self.state.find(run, finding)
        self.state.save(run)
        return run


@pytest.fixture
def recorder(tmp_path):
    made = Recorder(tmp_path / "runs")
    yield made
    made.state.close()


@pytest.fixture
def job(tmp_path, environ):
    """A job that trains under a daemon of its own, past its first steps; its pid."""
    command = [sys.executable, "-m", "gpuwatch", "run", "-q", "--name", "digits", "--logdir", str(tmp_path / "runs"), "--"]
    command += [sys.executable, str(LOOP), "plain", "--batches", "1000000"]
    process = subprocess.Popen(command, env=environ, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    summary = tmp_path / "runs" / "digits" / "run.json"
    deadline = time.monotonic() + 60
    while not (summary.exists() and json.loads(summary.read_text())["step"] > 5):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield json.loads(summary.read_text())["identity"]["pid"]
    assert process.poll() is None, "the job lives on"
    process.terminate()
    process.wait(timeout=30)
    process.stderr.close()
