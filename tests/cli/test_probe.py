"""`gpuwatch probe amp` on a job that runs: by run and by pid, what it asks first, and what it cannot do."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LOOP = Path(__file__).resolve().parents[1] / "hooks" / "lr_loop.py"


def test_by_run_and_by_pid(gpuwatch, job, tmp_path):
    asked = gpuwatch("probe", "amp", "digits", "--logdir", "runs")
    assert asked.returncode == 2
    assert "will drop" in asked.stderr
    assert "say --yes" in asked.stderr
    told = gpuwatch("probe", "amp", "digits", "--steps", "24", "--yes", "--json", "--logdir", "runs")
    assert told.returncode == 0, told.stderr
    facts = json.loads(told.stdout)
    assert (facts["run"], facts["amp_variant"]) == ("digits", "bfloat16")
    assert facts["amp_speedup_low"] <= facts["amp_speedup_ratio"] <= facts["amp_speedup_high"]
    assert facts["amp_probe_dropped_batches"] == 4 * (3 + 2)
    shown = gpuwatch("probe", "amp", job, "--steps", "24", "--yes")
    assert shown.returncode == 0, shown.stderr
    assert "speed-up" in shown.stdout
    assert "20 batches were dropped" in shown.stdout


def test_what_cannot_be_probed(gpuwatch, recorder):
    recorder.run("over")
    ended = gpuwatch("probe", "amp", "over", "--logdir", recorder.logdir)
    assert ended.returncode == 1
    assert "over has ended" in ended.stderr
    nobody = gpuwatch("probe", "amp", "4194303", "--logdir", recorder.logdir)
    assert nobody.returncode == 1
    assert "gpuwatch attach 4194303" in nobody.stderr


def test_a_second_probe_is_told_so_although_the_first_one_ends_before_it_looks(job, tmp_path, environ):
    def ask(*arguments):
        command = [sys.executable, "-m", "gpuwatch", "probe", "amp", "digits", "--yes", "--logdir", "runs", *arguments]
        return subprocess.Popen(command, env=environ, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    both = [ask("--steps", "10000"), ask("--steps", "10000")]
    try:
        deadline = time.monotonic() + 60
        # On a fast machine the one that was taken may be over first.
        while not (refused := [process for process in both if process.poll() == 1]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert "another probe of this job is under way" in refused[0].stderr.read()
    finally:
        for process in both:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("how", ["interrupted", "timed out"])
def test_who_stops_waiting_is_told_what_goes_on(job, tmp_path, environ, how):
    command = [sys.executable, "-m", "gpuwatch", "probe", "amp", "digits", "--yes", "--logdir", "runs", "--steps", "10000"]
    command += ["--timeout", "1"] if how == "timed out" else []
    ours, terminal = pty.openpty()
    asking = subprocess.Popen(command, env=environ, cwd=tmp_path, stdout=subprocess.PIPE, stderr=terminal, text=True)
    os.close(terminal)
    said, sent = b"", False
    with contextlib.suppress(OSError):  # EIO: the terminal's last user has gone
        while some := os.read(ours, 4096):
            said += some
            if how == "interrupted" and not sent and b"about " in said:  # it waits from here on
                asking.send_signal(signal.SIGINT)
                sent = True
    os.close(ours)
    out, _ = asking.communicate(timeout=60)
    assert (asking.returncode, out) == (130 if how == "interrupted" else 1, "")
    last = said.decode().replace("\r\n", "\n").rstrip("\n").rpartition("\n")[2]
    assert "the probe goes on in the job and drops 6000 batches at most; its result will be in: gpuwatch status" in last
    assert f"{tmp_path / 'runs' / 'digits'} --json" in last
