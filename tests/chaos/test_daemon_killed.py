"""kill -9 of the daemon, again and again, under a trainer: nothing acknowledged is lost, nothing is there twice."""

import random
import signal
import time

import pytest
from gpuwatch_hooks import wire

from tests.chaos.conftest import ROUNDS, journal, tensorboard_points
from tests.running_daemon import RunningDaemon, wait_until

KILLS = 8 * ROUNDS


@pytest.mark.slow
@pytest.mark.timeout(120 + 12 * KILLS)
def test_a_daemon_killed_again_and_again_loses_nothing_and_repeats_nothing(tmp_path, start_trainer):
    chance = random.Random(1)
    trainer = None
    acknowledged = 0
    for _ in range(KILLS):
        daemon = RunningDaemon(tmp_path)
        trainer = trainer or start_trainer(1_000_000, 200, GPUWATCH_HOOKS_RING_SLOTS="4000")
        wait_until(lambda: _journaled(daemon) > acknowledged)  # noqa: B023
        time.sleep(chance.uniform(0, 0.3))
        daemon.kill()
        now = _journaled(daemon)
        assert now >= acknowledged, "what one daemon had acknowledged is gone after another"
        acknowledged = now
    with RunningDaemon(tmp_path) as daemon:
        trainer.process.send_signal(signal.SIGUSR1)
        result = trainer.result()
        steps = result["steps"]
        run = wait_until(lambda: (run := daemon.runs()["chaos"]).status == "finished" and run)
        assert daemon.end() == 0
    frames = journal(tmp_path / "runs" / "chaos")
    ring = [frame.sequence for frame in frames if not frame.is_control]
    assert ring == list(range(1, result["published"] + 1)), "each record once, in order"
    assert run.counters.dropped.get("overwritten", 0) == 0, "the ring was too small for this test to mean anything"
    assert run.counters.steps == run.step == steps
    assert run.counters.records == result["published"]
    tenths = [scalar.step for frame in frames if frame.kind == 18 for scalar in frame.decode()]
    assert tenths == list(range(10, steps + 1, 10))
    assert tensorboard_points(tmp_path / "runs" / "chaos", "train/loss") == [(k, float(k)) for k in range(1, steps + 1)]
    assert [step for step, _ in tensorboard_points(tmp_path / "runs" / "chaos", "tenth")] == tenths


def _journaled(daemon):
    """The last ring record that any journal segment holds."""
    directory = daemon.logdir / "chaos"
    if not (directory / "journal").is_dir():
        return 0
    return max((frame.sequence for frame in journal(directory) if frame.kind == wire.KIND_STEP), default=0)


def test_twin_without_the_journal_position_records_come_twice(tmp_path, start_trainer, monkeypatch):
    """The protection is the journal's own position: a daemon that reads each ring from its beginning repeats records."""
    from tests.running_daemon import SERVE

    careless = SERVE.replace(
        "flags = ",
        "import gpuwatch.intake.rings as r\nr.RingReader.seek = lambda self, acknowledged: None\n"
        "import gpuwatch.state.journal_reader as j\nj.JournalReader._is_new = lambda self, frame: True\nflags = ",
    )
    monkeypatch.setattr("gpuwatch.state.journal_reader.JournalReader._is_new", lambda self, frame: True)
    trainer = None
    for _ in range(2):
        daemon = RunningDaemon(tmp_path, code=careless)
        trainer = trainer or start_trainer(1200, 200)  # longer than two daemons take to start on a busy machine
        before = _journaled(daemon)
        wait_until(lambda: _journaled(daemon) > before + 20)  # noqa: B023
        daemon.kill()
    with RunningDaemon(tmp_path, code=careless) as daemon:
        trainer.result()
        wait_until(lambda: daemon.runs()["chaos"].status == "finished")
        daemon.end()
    ring = [frame.sequence for frame in journal(tmp_path / "runs" / "chaos") if not frame.is_control]
    assert len(ring) > len(set(ring))
