"""The trainer is killed: its last completed step is exported within a second, and nothing torn is believed."""

import signal
import time

from tests.chaos.conftest import ROUNDS, journal
from tests.running_daemon import RunningDaemon, wait_until

KILLS = 6 * ROUNDS


def test_the_last_completed_step_is_exported_within_a_second(tmp_path, start_trainer):
    waits = []
    with RunningDaemon(tmp_path) as daemon:
        for attempt in range(KILLS):
            trainer = start_trainer(100_000, 1500, GPUWATCH_RUN=f"run{attempt}")
            wait_until(lambda: daemon.runs().get(f"run{attempt}"))  # noqa: B023
            time.sleep(0.05 + 0.013 * attempt)
            trainer.process.send_signal(signal.SIGKILL)
            trainer.process.wait(20)
            killed = time.monotonic()
            run = wait_until(lambda: (run := daemon.runs()[f"run{attempt}"]).status == "lost" and run)  # noqa: B023
            waits.append(time.monotonic() - killed)
            steps = [frame.decode() for frame in journal(tmp_path / "runs" / f"run{attempt}") if frame.kind == 1]
            assert [part.step for part in steps] == list(range(1, run.step + 1))
            assert all(part.values["loss"] == part.step for part in steps), "a record that was never written so"
            assert run.counters.dropped.get("damaged", 0) == 0
            assert run.counters.dropped.get("undecodable", 0) == 0
            if attempt == 0:  # a scrape may be answered with the document of the last half second
                time.sleep(0.5)
                assert daemon.metrics()['gpuwatch_train_steps_total{run="run0",rank="0"}'] == run.step
        assert daemon.end() == 0
    assert sorted(waits)[len(waits) // 2] < 1.0
