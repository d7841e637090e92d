"""`gpuwatch compare` on runs that a real State recorded."""

import json


def test_two_runs_side_by_side(gpuwatch, recorder):
    recorder.run("slow", steps=30)
    recorder.run("fast", steps=30, fields={"step_seconds": 0.125})
    shown = gpuwatch("compare", "slow", "fast", "--logdir", recorder.logdir)
    assert shown.returncode == 0, shown.stderr
    heading, first, second = shown.stdout.splitlines()
    assert heading.split()[:3] == ["run", "steps", "train"]
    assert "1.00x" in first
    assert "2.00x" in second
    rows = json.loads(gpuwatch("compare", "slow", "fast", "--json", "--logdir", recorder.logdir).stdout)
    assert [row["speedup_ratio"] for row in rows] == [1.0, 2.0]
    assert [row["steps_per_second"] for row in rows] == [4.0, 8.0]
    drawn = gpuwatch("compare", "slow", "fast", "--markdown", "--logdir", recorder.logdir).stdout.splitlines()
    assert [line.count("|") for line in drawn] == [drawn[0].count("|")] * 4


def test_a_run_that_is_not_there(gpuwatch, recorder):
    recorder.run("slow")
    refused = gpuwatch("compare", "slow", "slwo", "--logdir", recorder.logdir)
    assert refused.returncode == 2
    assert "did you mean 'slow'?" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_run_whose_journal_is_gone(gpuwatch, recorder):
    run = recorder.run("slow")
    journal = recorder.logdir / run.directory / "journal"
    journal.rename(journal.with_name("elsewhere"))
    refused = gpuwatch("compare", "slow", "--logdir", recorder.logdir)
    assert refused.returncode == 1
    assert "cannot be read" in refused.stderr
    assert "Traceback" not in refused.stderr
