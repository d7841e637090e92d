"""An unmodified training script under `gpuwatch run`: what it says of itself is what Prometheus and TensorBoard hold of it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.exporters.prometheus_server import PrometheusServer
from tests.exporters.test_real_tensorboard import Board

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RANK = frozenset({("run", "amp"), ("rank", "0")})


@pytest.fixture
def environment(tmp_path):
    (tmp_path / "socket").mkdir(mode=0o700)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GPUWATCH")}
    return {**kept, "GPUWATCH_SOCKET": str(tmp_path / "socket" / "gpuwatch.sock")}


@pytest.fixture
def daemon(tmp_path, environment):
    """(address of /metrics, logdir) of a daemon of its own."""
    command = [sys.executable, "-m", "gpuwatch", "daemon", "--logdir", str(tmp_path / "runs"), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if found := re.search(r"metrics at http://([\d.:]+)/metrics", line):
            break
    else:
        pytest.fail("the daemon said nothing of its metrics")
    yield found[1], tmp_path / "runs"
    process.terminate()
    assert process.wait(20) == 0
    process.stderr.close()


def test_a_script_that_knows_nothing_of_gpuwatch(daemon, environment, tmp_path):
    address, logdir = daemon
    prometheus = PrometheusServer(address, tmp_path)
    try:
        command = [
            sys.executable,
            "-m",
            "gpuwatch",
            "run",
            "--name",
            "amp",
            "--",
            sys.executable,
            "tests/programs/fp16_scaler.py",
        ]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90, check=False)
        assert result.returncode == 0, result.stderr
        said = {key: float(value) for key, value in re.findall(r"(\w+)=([\d.e+-]+)", result.stdout)}
        prometheus.until(lambda server: server.query("gpuwatch_train_steps_total") == {RANK: said["steps"]})
        for name, value in {
            "train_loss": said["loss"],
            "train_loss_scale": said["loss_scale"],
            "train_loss_scale_backoffs_total": said["backoffs"],
            "train_skipped_steps_total": said["skipped"],
            "train_step_duration_seconds_count": said["steps"] - 1,
        }.items():
            assert prometheus.query("gpuwatch_" + name) == {RANK: pytest.approx(value)}, name
        assert prometheus.query("gpuwatch_train_grad_norm") == {RANK: pytest.approx(said["grad_norm"], rel=1e-4)}
        assert prometheus.query("gpuwatch_train_nonfinite_gradients_total")[RANK] >= said["skipped"]
        (info,) = prometheus.query("gpuwatch_train_info")
        assert dict(info)["precision"] == "fp16"
    finally:
        prometheus.close()

    board = Board(logdir)
    try:
        steps = list(range(1, int(said["steps"]) + 1))
        board.wait(lambda b: [step for step, _ in b.scalars("amp", "train/loss")] == steps)
        assert board.scalars("amp", "train/loss")[-1][1] == pytest.approx(said["loss"])
        assert sum(value for _, value in board.scalars("amp", "amp/skipped")) == said["skipped"]
        assert len(board.get("plugin/histograms/tags")["amp"]) == 8  # gradients and weights of four parameters
    finally:
        board.close()
