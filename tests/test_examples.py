"""The examples run as they stand, and TensorBoard finds what they logged."""

import os
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpuwatch.state.summary import decode
from tests.running_daemon import ROOT, RunningDaemon


@pytest.mark.slow
def test_by_hand_is_recorded_with_its_pictures(tmp_path):
    with RunningDaemon(tmp_path) as daemon:
        environ = {**os.environ, "GPUWATCH_SOCKET": str(daemon.socket), "OMP_NUM_THREADS": "1"}
        script = [sys.executable, str(ROOT / "examples" / "by_hand.py")]
        result = subprocess.run(script, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=110, check=False)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-1].startswith("epoch 5  loss")
        assert daemon.end() == 0
        (run,) = daemon.runs().values()
        assert (run.run, run.status) == ("by-hand", "finished")
        assert run.scalars["Accuracy/val"][0] == 5
    tags = EventAccumulator(str(daemon.logdir / "by-hand")).Reload().Tags()
    assert {"train_samples", "feature_maps/conv", "confusion"} <= set(tags["images"])
    assert {"head.weight", "grad/conv.weight"} <= set(tags["histograms"])
    assert {"train/loss", "Accuracy/val", "grad/conv.weight/norm"} <= set(tags["scalars"])
    assert "notes" in tags["tensors"]


@pytest.mark.slow
def test_by_hand_without_a_daemon_and_without_matplotlib_says_so_in_one_line_and_trains(tmp_path):
    environ = {**os.environ, "GPUWATCH_SOCKET": str(tmp_path / "nobody"), "OMP_NUM_THREADS": "1"}
    hidden = "import runpy, sys; sys.modules['matplotlib'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    script = [sys.executable, "-c", hidden, str(ROOT / "examples" / "by_hand.py")]
    result = subprocess.run(script, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=110, check=False)
    assert result.returncode == 0
    assert "epoch 5  loss" in result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("gpuwatch: "), line


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "epochs", "rule"), [("explode", 14, "exploding_gradient"), ("slow", 5, "data_starvation")])
def test_a_training_that_misbehaves_is_told_as_the_tutorial_says(tmp_path, fault, epochs, rule):
    script = [sys.executable, str(ROOT / "examples" / "misbehaving.py"), fault, "--epochs", str(epochs)]
    command = [sys.executable, "-m", "gpuwatch", "run", "--name", fault, "--logdir", str(tmp_path / "runs"), "--", *script]
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    result = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=110, check=False)
    assert result.returncode == 0, result.stderr
    (known,) = [decode(path.read_bytes()) for path in (tmp_path / "runs").glob("*/run.json")]
    assert rule in {finding.rule for finding in known.findings}
