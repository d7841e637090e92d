"""`gpuwatch lr-find` from end to end: a script that knows nothing of it, a daemon of its own, a curve in TensorBoard."""

import json
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

LOOP = Path(__file__).resolve().parents[1] / "hooks" / "lr_loop.py"


def test_the_curve_the_suggestion_and_the_picture(gpuwatch, tmp_path):
    ramp = ("--steps", "60", "--min", "1e-5", "--max", "10", "--name", "found", "--logdir", tmp_path / "runs", "--json")
    ran = gpuwatch("lr-find", *ramp, "--", sys.executable, LOOP, "plain", "--batches", "200")
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout[ran.stdout.index("{") :])
    rates = [point["rate"] for point in result["points"]]
    assert rates == sorted(rates)
    assert len(rates) > 30
    assert 1e-5 <= result["suggestion"] <= 10
    assert result["failed"] == ""
    assert not result["cut_short"]
    directory = tmp_path / "runs" / "found"
    assert (directory / "lr-find.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(directory), size_guidance={"images": 0, "scalars": 0}).Reload()
    assert "lr_find" in events.Tags()["images"]
    smoothed = [event.value for event in events.Scalars("lr_find/smoothed_loss")]
    assert len(smoothed) == len(rates)
    assert not (tmp_path / "model.pt").exists()


def test_a_command_that_ends_in_the_middle_of_the_test(gpuwatch, tmp_path):
    ran = gpuwatch("lr-find", "--logdir", tmp_path / "runs", "--json", "--", sys.executable, LOOP, "plain", "--batches", "40")
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout[ran.stdout.index("{") :])
    assert len(result["points"]) == 40
    assert result["cut_short"]
    assert "the command ended after 40 of the range test's 100 steps" in ran.stderr


def test_a_command_that_does_not_train(gpuwatch, tmp_path):
    ran = gpuwatch("lr-find", "--logdir", tmp_path / "runs", "--", sys.executable, "-c", "pass")
    assert ran.returncode == 1
    assert "no training step was seen" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_impossible_rates(gpuwatch, tmp_path):
    ran = gpuwatch("lr-find", "--min", "1", "--max", "0.1", "--", "python", LOOP)
    assert ran.returncode == 2
    assert "--min 1 is not below --max 0.1" in ran.stderr


@pytest.mark.parametrize("missing", ["matplotlib", "writable"])
def test_no_picture_is_no_failure(gpuwatch, environ, tmp_path, missing):
    target = tmp_path / "curve.png"
    if missing == "matplotlib":  # hidden from the command's interpreter, and from the job's, which needs none
        hidden = tmp_path / "hidden" / "matplotlib"
        hidden.mkdir(parents=True)
        (hidden / "__init__.py").write_text("raise ImportError('hidden')")
        environ["PYTHONPATH"] = f"{hidden.parent}:{environ['PYTHONPATH']}"
        why = "none: matplotlib is not installed here"
    else:
        target = Path("/proc/curve.png")  # for root too
        why = f"none: {target} cannot be written"
    ramp = ("--steps", "20", "--name", "found", "--logdir", tmp_path / "runs", "-o", target)
    ran = gpuwatch("lr-find", *ramp, "--", sys.executable, LOOP, "plain", "--batches", "60", env=environ)
    assert ran.returncode == 0, ran.stderr
    assert why in ran.stdout
    assert "suggestion" in ran.stdout
    assert "Traceback" not in ran.stderr
