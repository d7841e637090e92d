"""Real trainers, real daemons, and what their files say afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpuwatch.state.journal_reader import JournalReader, Position
from tests.running_daemon import ROOT

#: `make chaos` sets it: how many times longer than in the usual run of the tests.
ROUNDS = int(os.environ.get("GPUWATCH_CHAOS_ROUNDS", "1"))


class Trainer:
    def __init__(self, socket, steps, steps_a_second, **environ):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.trainer", str(steps), str(steps_a_second)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "GPUWATCH_SOCKET": str(socket), "GPUWATCH_RUN": "chaos", **environ},
        )
        assert self.process.stdout.readline() == "ready\n"

    def result(self, seconds=120):
        """What it printed at its end: {"steps": ..., "published": ..., "slowest": ...}."""
        output, _ = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0
        words = output.split()
        return dict(zip(words[::2], map(int, words[1::2]), strict=True))


@pytest.fixture
def start_trainer(tmp_path):
    trainers = []

    def start(steps, steps_a_second, **environ):
        trainers.append(Trainer(tmp_path / "gpuwatch.sock", steps, steps_a_second, **environ))
        return trainers[-1]

    yield start
    for trainer in trainers:
        trainer.process.kill()
        trainer.process.wait(20)
        trainer.process.stdout.close()


def journal(directory):
    """Every frame of a run's journal, oldest first, doubles of a rewritten batch left out as every reader leaves them out."""
    reader = JournalReader(os.open(Path(directory) / "journal", os.O_RDONLY | os.O_DIRECTORY), Position())
    frames = []
    while entries := reader.read():
        frames += [entry.frame for entry in entries]
    reader.close()
    return frames


def tensorboard_points(directory, tag):
    """The (step, value) points of a tag, in the order of the event files, by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    points = []
    for path in sorted(Path(directory).glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            values = [value.tensor.float_val[0] for value in event.summary.value if value.tag == tag]
            points.extend((event.step, value) for value in values)
    return points
