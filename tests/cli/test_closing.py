"""What `gpuwatch run` says at the end when not all could be kept, and what `status` and `runs` say of it later."""

import os
import subprocess
import sys

import pytest

from gpuwatch.cli import closing
from gpuwatch.cli.closing import Answer, Process

TRAINS = (sys.executable, "-m", "tests.cli.trains")
#: When the first 20 steps are on the disk and told in run.json.
KEPT = "until grep -q '\"step\": 20' {logdir}/x/run.json; do sleep 0.05; done; "


def said(result):
    return [line for line in result.stderr.splitlines() if line.startswith("gpuwatch: ")]


@pytest.fixture
def disk(tmp_path):
    """A tmpfs of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, timeout=20, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], timeout=20, check=False)


def test_a_disk_that_fills_up_under_the_run_is_told(gpuwatch, disk):
    runs = disk / "runs"
    fill = KEPT.format(logdir=runs) + f"dd if=/dev/zero of={disk}/ballast bs=4096 2>/dev/null || true"
    result = gpuwatch("run", "--name", "x", "--logdir", runs, "--", *TRAINS, "between", fill)
    assert result.returncode == 0, result.stderr
    _, last, short, _ = said(result)
    assert last == "gpuwatch: 40 steps seen, findings: none"
    why = "steps 21 to 40 are not on the disk: No space left on device"
    assert short == f"gpuwatch: NOT ALL OF IT WAS KEPT: {why}"
    shown = gpuwatch("status", "x", "--logdir", runs).stdout
    assert shown.startswith("x  finished  step 40")
    assert why in shown
    assert "finished, incomplete" in gpuwatch("runs", "--logdir", runs).stdout


def test_a_disk_that_is_full_from_the_start_is_told(gpuwatch, disk):
    runs = disk / "runs"
    fill = (
        f"mkdir -p {runs} && dd if=/dev/zero of={disk}/ballast bs=4096 2>/dev/null; exec {sys.executable} -m tests.cli.trains"
    )
    result = gpuwatch("run", "--name", "x", "--logdir", runs, "--", "sh", "-c", fill)
    assert result.returncode == 0, result.stderr
    assert said(result)[-2] == "gpuwatch: NOT ALL OF IT WAS KEPT: none of its steps is on the disk: No space left on device"


def test_a_log_directory_that_takes_no_run_is_told(gpuwatch):
    spoil = f"rm -r runs; touch runs; {' '.join(TRAINS)}; true"
    result = gpuwatch("run", "--name", "x", "--", "sh", "-c", spoil)
    assert result.returncode == 0, result.stderr
    assert said(result)[-1] == "gpuwatch: NOTHING WAS RECORDED: runs: File exists"


@pytest.mark.parametrize("victim", ["runs", "runs/x"])
def test_a_log_directory_that_is_deleted_under_the_run_is_told(gpuwatch, tmp_path, victim):
    delete = KEPT.format(logdir="runs") + f"rm -r {victim}"
    result = gpuwatch("run", "--name", "x", "--", *TRAINS, "between", delete)
    assert result.returncode == 0, result.stderr
    _, last, short, _ = said(result)
    assert last == "gpuwatch: 40 steps seen, findings: none"
    assert short == "gpuwatch: NOT ALL OF IT WAS KEPT: runs/x was deleted or moved, and what was recorded with it"
    assert "Traceback" not in result.stderr


def process(**changes):
    return Process(
        **{
            "run": "x",
            "directory": "x",
            "rank": 0,
            "world_size": 1,
            "pid": 1,
            "status": "finished",
            "end_reason": "exit",
            "step": 20,
            "kept_step": 20,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("processes", "told"),
    [
        ([{}], ["20 steps recorded, findings: none", "see gpuwatch status x --logdir runs"]),
        (
            [{"status": "lost", "end_reason": "gone"}],
            ["20 steps recorded (died), findings: none", "see gpuwatch status x --logdir runs"],
        ),
        (
            [
                {"world_size": 2},
                {"rank": 1, "world_size": 2, "status": "lost", "end_reason": "gone", "step": 18, "kept_step": 18},
            ],
            ["20 steps recorded on 2 ranks (rank 1 died), findings: none", "see gpuwatch status x --logdir runs"],
        ),
        # Two processes that trained under one name are no ranks of one job.
        (
            [{}, {"run": "x-2", "directory": "x-2", "step": 7, "kept_step": 7}],
            [
                "2 processes trained on their own; steps recorded: 20 as x, 7 as x-2, findings: none",
                "see gpuwatch runs --logdir runs",
            ],
        ),
        (
            [{"findings": {"a": "info", "b": "critical"}}, {"findings": {"a": "warning"}}],
            ["20 steps recorded, findings: b (critical), a (warning)", "see gpuwatch status x --logdir runs"],
        ),
        (
            [{"lost_records": 3}],
            [
                "20 steps seen, findings: none",
                "NOT ALL OF IT WAS KEPT: 3 records were lost while the disk took none",
                "see gpuwatch status x --logdir runs",
            ],
        ),
    ],
)
def test_the_last_lines(processes, told):
    assert closing.sentences(Answer([process(**changes) for changes in processes]), "runs", 0) == told


MARKED = {"status": "failed", "end_reason": "command exit 1"}


@pytest.mark.parametrize(
    ("processes", "status", "told"),
    [
        ([MARKED], 1, "20 steps recorded (the command failed, exit 1)"),
        ([{"world_size": 2, **MARKED}, {"rank": 1, "world_size": 2, **MARKED}], 1, "on 2 ranks (the command failed, exit 1)"),
        ([{}], -15, "20 steps recorded (the command ended by SIGTERM)"),  # its daemon was gone
        ([{"status": "lost", "end_reason": "gone"}], 1, "20 steps recorded (died; the command failed, exit 1)"),
        ([{"status": "failed", "end_reason": "exit 1"}], 1, "20 steps recorded (failed, exit 1)"),
        (
            [{"world_size": 2}, {"rank": 1, "world_size": 2, "status": "failed", "end_reason": "exception"}],
            1,
            "20 steps recorded on 2 ranks (rank 1 failed, exception)",
        ),
        # torchrun has started it twice.
        ([{"status": "failed", "end_reason": "exception"}, MARKED], 1, "(x failed, exception; the command failed, exit 1)"),
    ],
)
def test_a_command_that_failed_is_told(processes, status, told):
    first, *_ = closing.sentences(Answer([process(**changes) for changes in processes]), "runs", status)
    assert first.endswith(f"{told}, findings: none")
