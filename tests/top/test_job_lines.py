"""The jobs' table on runs that a real State recorded."""

import msgspec

from gpuwatch.top import as_json, job_lines
from gpuwatch.top.lines import plain, width_of
from gpuwatch.top.reading import Job
from tests.cli.test_runs_status import finding


def changed(job, status=None, **changes):
    return Job(msgspec.structs.replace(job.summary, **changes), status or job.status)


def texts(reading, width=80):
    return [plain(line) for line in job_lines.lines(reading, width)]


def test_a_live_run_on_80_columns(trained):
    head, row, found = texts(trained.reading())
    assert head.split()[:7] == ["RUN", "STATUS", "STEP", "STEP/S", "LOSS", "GRAD", "SCALE"]
    assert row.split()[:7] == ["digits", "live", "1,234", "4", "0.00081", "1.5", "65536"]
    assert "░░▒▒▒▒▒▓▓▓▓▓" in row
    assert found == "  ! exploding_gradient from step 2: The norm is 90."
    assert max(map(width_of, job_lines.lines(trained.reading(), 80))) <= 80


def test_more_room_shows_more_and_explains_the_bar(trained):
    head, row, _ = texts(trained.reading(), 150)
    assert "░ data ▒ forward ▓ backward █ optimizer" in head
    assert row.split()[8:] == ["20%", "0", "1", "0"]
    narrow_head, narrow_row, _ = texts(trained.reading(), 40)
    assert "LOSS" in narrow_head
    assert "digits" in narrow_row
    assert len(narrow_row) <= 40


def test_ranks_are_one_row_with_each_finding_once_and_the_worst_status(trained):
    (job,) = trained.jobs
    ranks = [changed(job, rank=rank, world_size=4, findings=[finding(rank=rank)]) for rank in range(4)]
    _, row, found = texts(trained.reading(ranks), 120)
    assert found == "  ! exploding_gradient from step 2 (4 ranks): The norm is 90."
    assert row.split()[1] == "live"
    assert row.split()[-2] == "4"
    ranks[2] = Job(ranks[2].summary, "lost")
    assert texts(trained.reading(ranks), 120)[1].split()[1] == "lost"


def test_runs_that_ended_lately_stay_and_older_ones_go(trained):
    (job,) = trained.jobs
    now = trained.node.wall_seconds
    ended = changed(job, "finished", run="ended", updated_wall_seconds=now - 60)
    old = changed(job, "finished", run="old", updated_wall_seconds=now - 600)
    shown = job_lines.shown(trained.reading([ended, old, job]))
    assert [run[0].summary.run for run in shown] == ["digits", "ended"]
    rows = texts(trained.reading([ended]))
    assert len(rows) == 2, "a finding of a run that has ended is not active"
    assert rows[1].split()[3] == "-"


def test_a_loss_that_is_no_number_stands_out(trained):
    (job,) = trained.jobs
    (cell,) = [
        segment
        for segment in job_lines.lines(trained.reading([changed(job, values={"loss": "nan"})]), 80)[1]
        if segment.text.strip() == "nan"
    ]
    assert cell.style == "bold red"


def test_no_run_says_how_to_start_one(trained):
    assert texts(trained.reading([])) == ["no training job; start one with: gpuwatch run -- python train.py"]


def test_json_has_the_jobs_on_their_gpus(trained):
    tree = as_json.tree(trained.reading())
    msgspec.json.encode(tree)
    (job,) = tree["jobs"]
    assert (job["run"], job["status"], job["gpus"], job["step"], job["steps_per_second"]) == (
        "digits",
        "live",
        ["0"],
        1234,
        4.0,
    )
    assert job["findings"][0]["rule"] == "exploding_gradient"
    assert abs(sum(job["phase_ratios"].values()) - 1) < 1e-9
    assert tree["gpus"][0]["values"]["throttle_active"]["power_cap"] == 1
    assert tree["gpus"][2]["reason"] == "GPU is lost"


def test_what_a_live_run_has_behind_it_is_told_in_one_line(trained):
    (job,) = trained.jobs
    over = [finding(rule="loss_spike", state="closed"), finding(rule="loss_spike", state="closed", step=9), finding()]
    *_, found, before = texts(trained.reading([changed(job, findings=over)]))
    assert found == "  ! exploding_gradient from step 2: The norm is 90."
    assert before == "    found before, and over: loss_spike (2 times)"
    assert len(texts(trained.reading([changed(job, "finished", findings=over)]))) == 2
