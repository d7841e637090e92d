import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpuwatch.config import Config, TensorBoard
from gpuwatch.exporters import run_export, tensorboard
from gpuwatch.exporters.leftovers import find
from gpuwatch.exporters.run_export import RunExport
from gpuwatch.exporters.tensorboard import TensorBoardExporter
from gpuwatch.selfstats import SelfStats
from gpuwatch.state.findings import Finding
from gpuwatch.state.store import State
from tests.exporters.job import Job
from tests.exporters.node import fill
from tests.exporters.test_run_export import points

QUICK = Config(tensorboard=TensorBoard(flush_seconds=0.1))


@pytest.fixture
def exporter(state, stats):
    exporter = TensorBoardExporter(QUICK, state, stats)
    yield exporter
    exporter.stop()


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_every_run_that_comes_is_exported_and_every_end(state, stats, exporter):
    exporter.start()
    jobs = [Job(state, "ddp", rank=rank, world_size=2, pid=os.getpid()) for rank in range(2)]
    for step in range(1, 21):
        for job in jobs:
            job.step(step)
    until(lambda: points(jobs[1].run.path).get("train/loss", [0])[-1] == 20)
    assert stats.components()["tensorboard"].up
    jobs[0].end(20)
    state.process_gone(jobs[1].run)
    exporter.stop()
    for job in jobs:
        found = points(job.run.path)
        assert found["train/loss"] == list(range(1, 21))
        assert len(found["_hparams_/session_end_info"]) == 1


def test_stopping_waits_for_what_the_journal_holds(state, exporter):
    job = Job(state)
    exporter.start()
    for step in range(1, 301):
        job.step(step)
    exporter.stop()
    assert points(job.run.path)["train/loss"] == list(range(1, 301))


def test_gpu_values_of_the_moment(state, exporter):
    job = Job(state, pid=4000)
    fill(state, gpus=2, processes=1, ranks=[4000], now_ns=job.at(3))
    exporter._look()
    job.step(3)
    exporter.turn(time.monotonic_ns())
    found = points(job.run.path)
    assert found["gpu/0/power"] == found["gpu/0/memory_used"] == found["gpu/0/memory_peak"] == found["gpu/0/utilization"] == [3]
    assert "gpu/1/power" not in found  # the process is on GPU 0 only


def test_all_gpus_when_none_lists_the_process(state, exporter):
    job = Job(state, pid=77)
    fill(state, gpus=2, processes=1, now_ns=job.at(3))
    exporter._look()
    job.step(3)
    job.step(1000)  # nobody knows what the GPUs did then
    exporter.turn(time.monotonic_ns())
    assert points(job.run.path)["gpu/0/power"] == points(job.run.path)["gpu/1/power"] == [3]


def test_a_run_that_trips_over_a_bug_stops_only_itself(state, stats, exporter, monkeypatch):
    bad, good = Job(state, "bad", pid=1), Job(state, "good", pid=2)
    turn = RunExport.turn

    def trip(self, now_ns):
        if os.readlink(f"/proc/self/fd/{self._directory_fd}") == bad.run.path:
            raise RuntimeError("on purpose")
        return turn(self, now_ns)

    monkeypatch.setattr(RunExport, "turn", trip)
    bad.step(1)
    good.step(1)
    exporter.start()
    until(lambda: "on purpose" in stats.components()["tensorboard"].last_error)
    until(lambda: points(good.run.path).get("train/loss") == [1])
    assert not stats.components()["tensorboard"].up
    monkeypatch.undo()
    monkeypatch.setattr(tensorboard, "_REFUSED_NS", 0)
    exporter._followed[bad.run.directory].retry_at_ns = 0
    until(lambda: points(bad.run.path).get("train/loss") == [1])
    until(lambda: stats.components()["tensorboard"].up)


def test_points_without_a_place_are_counted(state, stats, exporter):
    job = Job(state)
    for step in (2, 1):
        job.scalar("a", step, 0.0)
    exporter.turn(time.monotonic_ns())
    exporter.turn(time.monotonic_ns())
    assert stats.value("tensorboard_points_left_out") == 1


def test_what_a_killed_daemon_left_is_finished_by_the_next(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    state = State(str(tmp_path))
    dead = Job(state, "dead", rank=1, world_size=2, pid=gone.pid)
    alive = Job(state, "alive", pid=os.getpid())
    whole = Job(state, "whole", pid=gone.pid)
    for job in (dead, alive, whole):
        job.step(1)
    whole.end(1)
    state.tick()
    for job in (dead, alive, whole):
        state.save(job.run)
    assert {(left.directory, left.status) for left in find(str(tmp_path))} == {("dead/rank1", "lost"), ("whole", "finished")}

    later = TensorBoardExporter(QUICK, State(str(tmp_path)), SelfStats())
    later.start()
    later.stop()
    for job in (dead, whole):
        assert points(job.run.path)["train/loss"] == [1]
        assert len(points(job.run.path)["_hparams_/session_end_info"]) == 1
    assert points(alive.run.path) == {}  # its process says hello to the next daemon by itself
    assert find(str(tmp_path)) == []


def test_a_link_in_the_log_directory_leads_nowhere(tmp_path):
    state = State(str(tmp_path / "real"))
    job = Job(state, "run", pid=1 << 22)
    job.step(1)
    state.save(job.run)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(job.run.path)
    assert find(str(tmp_path / "runs")) == []


def test_the_end_waits_for_what_the_journal_could_not_write_yet(state, exporter):
    job = Job(state)
    job.step(1)
    state.process_gone(job.run)
    words = {"statistic": "s", "value": 1.0, "threshold": 0.0, "summary": "s.", "action": "a.", "time": 1.0}
    state.find(job.run, Finding("straggler", "warning", 1, 1, 1, **words))  # written with the next batch
    assert job.run.journal.has_pending
    exporter.turn(time.monotonic_ns())
    assert "_hparams_/session_end_info" not in points(job.run.path)
    state.tick()
    exporter.turn(time.monotonic_ns())
    assert points(job.run.path)["finding/straggler"] == points(job.run.path)["_hparams_/session_end_info"] == [1]


def test_two_daemons_over_one_log_directory(state, stats, exporter, monkeypatch):
    monkeypatch.setattr(tensorboard, "_REFUSED_NS", 0)
    job = Job(state)
    job.step(1)
    other = RunExport(QUICK, os.open(job.run.path, os.O_RDONLY))
    exporter.turn(time.monotonic_ns())
    assert points(job.run.path) == {}
    other.close()
    exporter.turn(time.monotonic_ns())
    assert points(job.run.path)["train/loss"] == [1]


FULL_DISK = """
import os, sys, time
from tests.exporters.job import Job
from tests.exporters.test_run_export import points
from tests.exporters.test_tensorboard import QUICK, until
from gpuwatch.exporters import run_export
from gpuwatch.exporters.tensorboard import TensorBoardExporter
from gpuwatch.selfstats import SelfStats
from gpuwatch.state.findings import Finding
from gpuwatch.state.store import State

run_export.RETRY_NS = 200_000_000
state, stats = State(sys.argv[1]), SelfStats()
exporter = TensorBoardExporter(QUICK, state, stats)
job = Job(state, pid=os.getpid())
job.step(1)
exporter.turn(time.monotonic_ns())
assert points(job.run.path)["train/loss"] == [1]
for step in range(2, 11):
    job.step(step)
ballast = os.open(sys.argv[1] + "/ballast", os.O_WRONLY | os.O_CREAT)
try:
    while os.write(ballast, bytes(4096)):
        pass
except OSError as error:
    assert error.strerror == "No space left on device", error
exporter.start()
until(lambda: "No space left on device" in stats.components()["tensorboard"].last_error)
assert not stats.components()["tensorboard"].up
os.ftruncate(ballast, 0)
until(lambda: stats.components()["tensorboard"].up)
assert points(job.run.path)["train/loss"] == list(range(1, 11))
assert len([name for name in os.listdir(job.run.path) if "tfevents" in name]) == 2
exporter.stop()
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare (util-linux)")
def test_a_full_disk_is_seen_and_survived(tmp_path):
    mount = f'mount -t tmpfs -o size=1m none {tmp_path} && exec {sys.executable} -c "$CODE" {tmp_path}'
    result = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount],
        env={**os.environ, "CODE": FULL_DISK},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_only_what_the_run_still_needs_is_asked_of_the_journal(state, exporter):
    job = Job(state)
    job.step(1)
    exporter.turn(time.monotonic_ns())
    assert job.run.journal.passed["tensorboard"] == job.run.journal.segment
    assert run_export.CHECKPOINT_NAME in os.listdir(job.run.path)
