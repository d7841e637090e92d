"""A daemon that stands still (SIGSTOP) while training goes on: what the ring could not hold is counted to the record."""

import signal
import time

import pytest

from tests.chaos.conftest import journal
from tests.running_daemon import RunningDaemon, wait_until

#: Six seconds: run.json, by which the test sees the run, is written every two.
STEPS = 4000


@pytest.mark.parametrize("slots", [64, 2048])
def test_overwritten_is_exact_after_a_standstill(tmp_path, start_trainer, slots):
    with RunningDaemon(tmp_path) as daemon:
        trainer = start_trainer(STEPS, 600, GPUWATCH_HOOKS_RING_SLOTS=str(slots))
        wait_until(lambda: daemon.runs() and daemon.runs()["chaos"].step > 20)
        daemon.signal(signal.SIGSTOP)
        time.sleep(1.0)
        daemon.signal(signal.SIGCONT)
        published = trainer.result()["published"]
        run = wait_until(lambda: (run := daemon.runs()["chaos"]).status == "finished" and run)
        assert daemon.end() == 0
    sequences = [frame.sequence for frame in journal(tmp_path / "runs" / "chaos") if not frame.is_control]
    overwritten = run.counters.dropped.get("overwritten", 0)
    assert len(sequences) + overwritten == published
    assert run.counters.dropped.get("damaged", 0) == 0
    assert sequences == sorted(set(sequences))
    assert run.counters.records == len(sequences)
    if slots == 64:
        assert overwritten > 500, "the ring was never lapped: this tested nothing"
    else:
        assert overwritten == 0
    tenths = [scalar.step for frame in journal(tmp_path / "runs" / "chaos") if frame.kind == 18 for scalar in frame.decode()]
    assert tenths == list(range(10, STEPS + 1, 10)), "the control path loses nothing in either case"


def test_training_is_not_slowed_by_a_daemon_that_stands_still(tmp_path, start_trainer):
    with RunningDaemon(tmp_path) as daemon:
        daemon.signal(signal.SIGSTOP)
        trainer = start_trainer(2000, 4000)
        began = time.monotonic()
        trainer.result(60)
        # 2,000 steps at 4,000 a second; a write that waited for the daemon would never come back. The two seconds are
        # what the hooks give a last delivery.
        assert time.monotonic() - began < 10
        daemon.signal(signal.SIGCONT)
