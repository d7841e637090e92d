"""A disk that is full: no crash, metrics go on, the pause is shown, and records go on in a new file when there is room."""

import contextlib
import os
import resource
import subprocess

import pytest

from tests.chaos.conftest import journal, tensorboard_points
from tests.running_daemon import RunningDaemon, wait_until

pytestmark = pytest.mark.slow
JOURNAL = 'gpuwatch_component_up{component="journal"}'


class TinyDisk:
    """A tmpfs of one MiB, full of ballast."""

    def __init__(self, folder):
        self.folder = folder
        self.ballast = folder / "ballast"

    def fill(self, daemon):
        with self.ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass

    def free(self, daemon):
        self.ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(self.folder)], timeout=20, check=True)


class Forbidden:
    """The same for who may not mount: the daemon may not make any file longer than nothing (EFBIG)."""

    def __init__(self, folder):
        self.folder = folder

    def fill(self, daemon):
        _, hard = resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (0, hard))

    def free(self, daemon):
        _, hard = resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (hard, hard))


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and not subprocess.run(command, capture_output=True, timeout=20, check=False).returncode
    yield TinyDisk(folder) if mounted else Forbidden(folder)
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], timeout=20, check=False)


def test_a_disk_that_fills_up_pauses_the_record_and_nothing_else(tmp_path, disk, start_trainer):
    steps = 2500
    with RunningDaemon(tmp_path, logdir=disk.folder / "runs") as daemon:
        trainer = start_trainer(steps, 250)
        series = 'gpuwatch_train_steps_total{run="chaos",rank="0"}'
        wait_until(lambda: daemon.metrics().get(series, 0) > 50)
        disk.fill(daemon)
        wait_until(lambda: daemon.metrics()[JOURNAL] == 0)
        before = daemon.metrics()[series]
        wait_until(lambda: daemon.metrics()[series] > before + 100)
        assert daemon.process.poll() is None
        disk.free(daemon)
        wait_until(lambda: daemon.metrics()[JOURNAL] == 1, 30)
        published = trainer.result()["published"]
        run = wait_until(lambda: (run := daemon.runs()["chaos"]).status == "finished" and run)
        assert daemon.end() == 0
        assert run.step == steps
        directory = disk.folder / "runs" / "chaos"
        frames = journal(directory)
        # 8 MiB wait in memory for the disk, which is more than these few seconds brought: nothing is missing.
        assert [frame.sequence for frame in frames if not frame.is_control] == list(range(1, published + 1))
        tenths = [scalar.step for frame in frames if frame.kind == 18 for scalar in frame.decode()]
        assert tenths == list(range(10, steps + 1, 10))
        assert len(list((directory / "journal").glob("*.journal"))) > 1, "a torn segment was written on"
        points = [step for step, _ in tensorboard_points(directory, "train/loss")]
        assert points == sorted(set(points))
        assert points[-1] == steps
        assert "the journal is paused" in daemon.log.read_text()
        assert "the journal goes on" in daemon.log.read_text()


def test_a_disk_that_is_full_from_the_start(tmp_path, disk, start_trainer):
    with RunningDaemon(tmp_path, logdir=disk.folder / "runs") as daemon:
        disk.fill(daemon)
        trainer = start_trainer(1000, 150)
        wait_until(lambda: daemon.metrics().get(JOURNAL) == 0)
        wait_until(lambda: daemon.metrics()['gpuwatch_component_up{component="intake"}'] == 1)
        disk.free(daemon)
        trainer.result()
        run = wait_until(lambda: (run := daemon.runs().get("chaos")) and run.status == "finished" and run, 40)
        assert run.step == 1000
        assert daemon.end() == 0
