"""Exactly once: whatever ends the exporter, the next one loses nothing and writes nothing twice."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from gpuwatch.config import Config, TensorBoard
from gpuwatch.exporters import eventfile, run_export
from gpuwatch.exporters.run_export import BusyError, RunExport
from gpuwatch.exporters.written import Written
from tests.exporters.job import Job

ROOT = Path(__file__).parents[2]
CONFIG = Config(tensorboard=TensorBoard(layers_every_seconds=0.5, histograms_every_seconds=1.0))


def opened(job, config=CONFIG):
    return RunExport(config, os.open(job.run.path, os.O_RDONLY | os.O_DIRECTORY))


def crash(export):
    """What a SIGKILL leaves: the descriptors are closed, and nothing else happens."""
    os.close(export._directory_fd)
    if export._file is not None:
        export._file.close()


def drain(export, now_ns=0):
    while export.turn(now_ns):
        pass


def points(path):
    """tag -> its steps, in the order of the files and of the records in them."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    found = {}
    try:
        for name in eventfile.names(fd):
            for event in eventfile.read(fd, name):
                for value in event.summary.value:
                    found.setdefault(value.tag, []).append(event.step)
    finally:
        os.close(fd)
    return found


def train(job, steps):
    for step in steps:
        job.step(step)
        if step % 5 == 0:
            job.scalar("Accuracy/val", step // 5, step / 100)
        if step == 7:
            job.media("text", "notes", step, (), b"words")


def assert_whole(path, last):
    found = points(path)
    assert found["train/loss"] == list(range(1, last + 1))
    assert found["Accuracy/val"] == list(range(1, last // 5 + 1))
    assert found["notes"] == [7]
    assert found["custom_scalars__config__"] == [1]
    assert all(sorted(set(steps)) == steps for steps in found.values())


def test_an_unbroken_run_is_one_file(state):
    job = Job(state)
    export = opened(job)
    for last in (10, 20, 30):
        train(job, range(last - 9, last + 1))
        drain(export)
    export.close()
    assert_whole(job.run.path, 30)
    assert len([name for name in os.listdir(job.run.path) if "tfevents" in name]) == 1


def test_an_orderly_restart_goes_on_in_a_new_file(state):
    job = Job(state)
    for last in (10, 20, 30):
        export = opened(job)
        train(job, range(last - 9, last + 1))
        drain(export)
        export.close()
    assert_whole(job.run.path, 30)
    assert len([name for name in os.listdir(job.run.path) if "tfevents" in name]) == 3


def crash_all_the_way(state):
    job = Job(state)
    for first in range(1, 41, 4):
        export = opened(job)
        for step in range(first, first + 4):  # the first turn leaves a checkpoint, those behind it do not
            train(job, [step])
            export.turn(0)
        crash(export)
    export = opened(job)
    drain(export)
    export.close()
    return job


def test_crashes_behind_the_checkpoint(state):
    assert_whole(crash_all_the_way(state).run.path, 40)


def test_without_reading_the_files_back_a_crash_writes_twice(state, monkeypatch):
    # The twin: what the test above finds when the protection is off.
    monkeypatch.setattr(Written, "note", lambda self, event: None)
    steps = points(crash_all_the_way(state).run.path)["train/loss"]
    assert Counter(steps).most_common(1)[0][1] > 1


def test_a_torn_tail_is_written_again_and_only_that(state):
    job = Job(state)
    train(job, range(1, 21))
    export = opened(job)
    drain(export)
    name = export._file.name
    crash(export)
    path = Path(job.run.path) / name
    whole = path.read_bytes()
    checkpoint = (Path(job.run.path) / run_export.CHECKPOINT_NAME).read_bytes()
    for cut in (1, 50, 333, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:-cut])
        for other in Path(job.run.path).glob("*tfevents*"):
            if other.name != name:
                other.unlink()
        (Path(job.run.path) / run_export.CHECKPOINT_NAME).write_bytes(checkpoint)
        export = opened(job)
        drain(export)
        crash(export)
        assert_whole(job.run.path, 20)


@pytest.mark.parametrize("damage", [b"", b"{", b'{"file": 3}'])
def test_a_damaged_checkpoint_is_as_good_as_none(state, damage):
    job = Job(state)
    train(job, range(1, 21))
    export = opened(job)
    drain(export)
    export.close()
    (Path(job.run.path) / run_export.CHECKPOINT_NAME).write_bytes(damage)
    train(job, range(21, 31))
    export = opened(job)
    drain(export)
    export.close()
    assert_whole(job.run.path, 30)


def test_a_power_failure_that_kept_the_checkpoint_and_lost_the_events(state):
    job = Job(state)
    train(job, range(1, 21))
    export = opened(job)
    drain(export)
    name = export._file.name
    export.close()
    path = Path(job.run.path) / name
    path.write_bytes(path.read_bytes()[:3000])
    export = opened(job)
    drain(export)
    export.close()
    assert_whole(job.run.path, 20)


def test_a_step_that_waits_for_its_second_optimizer_is_not_lost_by_a_crash(state):
    job = Job(state)
    job.step(1)
    job.step(2, complete=False, optimizer=0)
    export = opened(job)
    drain(export)
    export.close()  # the checkpoint may not stand behind the first part
    job.step(2, complete=True, optimizer=1)
    export = opened(job)
    drain(export)
    export.close()
    found = points(job.run.path)
    assert found["train/loss"] == [1, 2]
    assert found["train/loss/SGD"] == [2]


def test_the_end_is_written_once(state):
    job = Job(state)
    train(job, range(1, 11))
    for _ in range(2):
        export = opened(job)
        drain(export)
        export.finish("exit", 0)
        assert export.ended
        crash(export)
    found = points(job.run.path)
    assert len(found["_hparams_/session_end_info"]) == 1


def test_one_exporter_at_a_time(state):
    job = Job(state)
    export = opened(job)
    with pytest.raises(BusyError):
        opened(job)
    export.close()
    opened(job).close()


def test_a_disk_that_is_full_pauses_and_goes_on_in_a_new_file(state):
    job = Job(state)
    train(job, range(1, 11))
    export = opened(job)
    drain(export)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    train(job, range(11, 21))  # the journal has them: it is the disk of the event files that is full
    # A limit on the size of files is what stands in for a full disk: the kernel cuts the write short, then refuses.
    resource.setrlimit(resource.RLIMIT_FSIZE, (export._file.length_bytes + 100, limits[1]))
    try:
        assert not export.turn(0)
        assert export.error == "File too large"
        assert not export.turn(run_export.RETRY_NS - 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert export.error
    drain(export, run_export.RETRY_NS + 1)
    assert not export.error
    export.close()
    assert_whole(job.run.path, 20)
    assert len([name for name in os.listdir(job.run.path) if "tfevents" in name]) == 2


CHILD = """
import sys, time
from tests.exporters.job import Job
from tests.exporters.test_run_export import train
from gpuwatch.config import Config, TensorBoard
from gpuwatch.exporters.tensorboard import TensorBoardExporter
from gpuwatch.selfstats import SelfStats
from gpuwatch.state.store import State

state = State(sys.argv[1])
exporter = TensorBoardExporter(Config(tensorboard=TensorBoard(flush_seconds=0.1)), state, SelfStats())
exporter.start()
job = Job(state, pid=int(sys.argv[3]), start_ns=1)
for step in range(1, int(sys.argv[2]) + 1):
    train(job, [step])
    if step > job.durable[0] // 6:
        time.sleep(0.002)
    print(step, flush=True)
exporter.stop()
"""


def test_killed_again_and_again(tmp_path):
    last = 600
    command = [sys.executable, "-c", CHILD, str(tmp_path / "runs"), str(last), str(os.getpid())]
    kills = 0
    while True:
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as child:
            target = 90 * (kills + 1)
            for line in child.stdout:
                if int(line) == target:
                    child.send_signal(signal.SIGKILL)
                    kills += 1
                    break
            else:
                assert child.wait(60) == 0
                break
    assert kills == 6
    path = tmp_path / "runs" / "digits"
    assert json.loads((path / run_export.CHECKPOINT_NAME).read_bytes())["written"]["last_step"] == last
    assert_whole(path, last)
