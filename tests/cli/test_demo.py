"""`gpuwatch demo`, as a new user starts it: ends by itself, finds the fault, leaves a run that everything else reads."""

import json
import re
import signal
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpuwatch.demo import __file__ as demo_folder
from tests.running_daemon import wait_until


@pytest.mark.slow
def test_the_demo_finds_the_broken_learning_rate(gpuwatch, tmp_path):
    result = gpuwatch("demo", "--seconds", "8", "--no-browser")
    assert result.returncode == 0, result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    assert re.search(r"metrics at http://127\.0\.0\.1:\d+/metrics", result.stderr)
    assert re.search(r"epoch \d+  loss \d+\.\d+  validation", result.stderr), "no progress was shown"
    (run,) = json.loads(gpuwatch("runs", "--json").stdout)
    assert (run["status"], run["attempt"]) == ("finished", 1)
    assert run["step"] > 20
    # The step was broken half-way; what the detectors must see of it, whatever else they say.
    assert {"loss_diverging", "loss_spike", "exploding_gradient", "update_ratio_high"} & set(run["findings"]), run
    for rule in run["findings"]:
        assert rule in result.stdout
    for command in re.findall(r"gpuwatch (status \S+ --logdir \S+|runs --logdir \S+)", result.stdout):
        assert gpuwatch(*command.split()).stdout
    events = EventAccumulator(str(tmp_path / "runs" / run["run"]), {"scalars": 0}).Reload()
    losses = events.Scalars("train/loss")
    assert [point.step for point in losses] == list(range(1, run["step"] + 1))
    rates = {
        point.value for point in events.Scalars(next(tag for tag in events.Tags()["scalars"] if tag.startswith("train/lr/")))
    }
    assert max(rates) == pytest.approx(300 * min(rates), rel=1e-5)


@pytest.mark.slow
def test_ctrl_c_in_the_demo_leaves_a_readable_run(gpuwatch, environ, tmp_path):
    command = [sys.executable, "-m", "gpuwatch", "demo", "--seconds", "60", "--no-browser"]
    demo = subprocess.Popen(command, cwd=tmp_path, env=environ, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        wait_until(lambda: "epoch" in demo.stderr.readline(), 60)
        demo.send_signal(signal.SIGINT)
        _, said = demo.communicate(timeout=60)
    finally:
        demo.kill()
    assert demo.returncode == -signal.SIGINT
    assert said.splitlines()[-1] == "Error: the training was ended by SIGINT"
    assert json.loads(gpuwatch("runs", "--json").stdout)[0]["step"] > 0


def test_the_training_knows_nothing_of_us():
    source = (demo_folder.rpartition("/")[0]) + "/digits.py"
    with open(source, encoding="utf-8") as file:
        assert "gpuwatch" not in file.read()
