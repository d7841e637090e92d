"""`gpuwatch runs` and `gpuwatch status` on runs that a real State recorded."""

import json
import math
import re
import time

import msgspec
import pytest

from gpuwatch.state.findings import Finding
from gpuwatch.state.identity import Identity

GONE = Identity(0, 2**22 + 1, 1)  # above pid_max: never a process


def finding(**changes):
    facts = {"rule": "exploding_gradient", "severity": "critical", "first_step": 2, "step": 3, "last_step": 3}
    facts |= {"statistic": "grad_norm", "value": 90.0, "threshold": 10.0}
    return Finding(**{**facts, "summary": "The norm is 90.", "action": "Clip gradients.", **changes})


def test_runs_lists_each_run_once(gpuwatch, recorder):
    recorder.run("a", steps=1234)
    recorder.run("a", steps=2, ending="exception")
    for rank in range(2):
        recorder.run("multi", rank=rank, world_size=2, ending=None)
    recorder.run("killed", ending=None, identity=GONE)
    result = gpuwatch("runs", "--logdir", recorder.logdir)
    assert result.returncode == 0, result.stderr
    rows = {(cells := re.split("  +", line))[0]: cells[1:5] for line in result.stdout.splitlines()}
    assert rows == {
        "RUN": ["STATUS", "RANKS", "STEP", "LOSS"],
        "a": ["finished", "1", "1,234", "0.0008104"],
        "a-2": ["failed, exception", "1", "2", "0.5"],
        "multi": ["live", "2", "3", "0.3333"],
        "killed": ["not followed", "1", "3", "0.3333"],
    }
    assert "\x1b" not in result.stdout


def test_a_run_whose_daemon_is_gone_is_not_followed_and_does_not_count_as_dead(gpuwatch, recorder):
    recorder.run("left", ending=None)
    file = recorder.logdir / "left" / "run.json"
    known = json.loads(file.read_bytes())
    known["daemon"] = {"uid": 0, "pid": GONE.pid, "start_ticks": 1}
    file.write_text(json.dumps(known))
    recorder.run("died", ending=None, identity=GONE)
    recorder.state.process_gone(recorder.state.runs["died"])
    since = re.escape(time.strftime("%Y-%m-%d", time.localtime(known["updated_wall_seconds"])))
    assert re.match(rf"left  not followed since {since} \d\d:\d\d:\d\d  step 3", gpuwatch("status", "left").stdout)
    assert gpuwatch("status", "died").stdout.startswith("died  died  step 3")
    rows = {
        row["run"]: (row["status"], row["standing"].split(" since")[0]) for row in json.loads(gpuwatch("runs", "--json").stdout)
    }
    assert rows == {"left": ("lost", "not followed"), "died": ("lost", "died")}


def test_runs_fits_the_terminal(gpuwatch, recorder, environ):
    run = recorder.run("a-name-as-they-are-20261123-094159", steps=1234)
    for rule, severity in (("loss_spike", "warning"), ("loss_diverging", "critical"), ("dead_layer", "info")):
        recorder.state.find(run, finding(rule=rule, severity=severity))
    recorder.state.save(run)
    piped = gpuwatch("runs", env={name: value for name, value in environ.items() if name != "COLUMNS"}).stdout
    assert piped.endswith("loss_diverging, loss_spike, dead_layer\n")
    for columns in (60, 80, 100, 120):
        out = gpuwatch("runs", env={**environ, "COLUMNS": str(columns)}).stdout
        assert max(map(len, out.splitlines())) <= max(columns, 72), out
        for word in ("a-name-as-they-are-20261123-094159", "finished", "1,234", "loss_diverging"):
            assert word in out


def test_runs_json_has_one_object_a_process(gpuwatch, recorder):
    for rank in range(2):
        recorder.run("multi", rank=rank, world_size=2, ending=None, finding=finding() if rank else None)
    rows = json.loads(gpuwatch("runs", "--json").stdout)
    assert [(row["run"], row["rank"], row["status"], row["step"], row["active_findings"]) for row in rows] == [
        ("multi", 0, "live", 3, []),
        ("multi", 1, "live", 3, ["exploding_gradient"]),
    ]
    assert rows[0]["path"] == "runs/multi/rank0"
    assert rows[0]["steps_per_second"] == pytest.approx(4.0)
    assert json.loads(gpuwatch("runs", "--json", "--logdir", "nowhere").stdout) == []


def test_runs_where_none_is(gpuwatch):
    result = gpuwatch("runs")
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == "no run is recorded in runs; start one with: gpuwatch run -- python train.py\n"


def test_damaged_and_foreign_files_are_passed_over(gpuwatch, recorder):
    recorder.run("good")
    for name, text in (("empty", ""), ("torn", '{"run": "x"'), ("foreign", '{"run": 1}'), ("future", '{"version": 99}')):
        (recorder.logdir / name).mkdir()
        (recorder.logdir / name / "run.json").write_text(text)
    (recorder.logdir / "loop").symlink_to(recorder.logdir / "loop")
    assert [row["run"] for row in json.loads(gpuwatch("runs", "--json").stdout)] == ["good"]


def test_status_shows_what_is_known(gpuwatch, recorder):
    fields = {"grad_norm": 90.0, "grad_norm_clipped": 1.0, "update_ratio": 0.001, "data_seconds": 0.1, "forward_seconds": 0.3}
    fields |= {
        "loss_scale": 1024.0,
        "loss_scale_backoffs": 1.0,
        "skipped": 1.0,
        "grad_underflow_ratio": 0.0125,
        "torch_allocated_bytes": 3.0 * 2**30,
    }
    fields |= {"overhead_ratio": 0.004, "thinning_level": 1.0, "autocast_dtype": 1.0}
    run = recorder.run("digits", ending=None, fields=fields, finding=finding())
    recorder.state.drop(run, "overwritten", 7)
    recorder.state.save(run)
    out = gpuwatch("status", "digits").stdout
    for line in (
        "digits  live  step 3, 4 steps/s (250.0 ms a step)",
        "train, Python 3.11.7, torch 2.13.0, cpu, autocast to float16",
        f"loss       {'█▃▁':<40} 0.3333",
        f"gradient   {'▁▁▁':<40} 90 before clipping, 1 after",
        "lr         0.1, update/weight 0.001",
        "loss scale 1024, 3 back-offs, 3 skipped steps, fp16 loses 1.25% of the gradient",
        "░ data 25%  ▒ forward 75%  ▓ backward 0%  █ optimizer 0%  · other 0%",
        "memory     3.0 GiB allocated by torch",
        "hooks      0.40% of the step time, thinned: update_ratio, 3 records, dropped: 7 overwritten",
        "findings   1 active, 0 closed",
        "critical  exploding_gradient, from step 2: The norm is 90.",
        "Clip gradients.",
    ):
        assert line in out, out


def test_status_of_an_ended_run_shows_each_rule_once_with_what_to_do(gpuwatch, recorder):
    run = recorder.run("digits")
    for first_step, rule, severity in ((1, "loss_spike", "warning"), (2, "loss_spike", "warning"), (3, "dead_layer", "info")):
        again = finding(rule=rule, severity=severity, first_step=first_step, step=first_step, action=f"Look at {rule}.")
        recorder.state.find(run, again)
        recorder.state.find(run, msgspec.structs.replace(again, state="closed"))
    recorder.state.save(run)
    lines = [line.strip() for line in gpuwatch("status", "digits").stdout.splitlines()]
    assert lines[-5:] == [
        "findings   3",
        "warning   loss_spike, from step 1 (the first of 2): The norm is 90.",
        "Look at loss_spike.",
        "info      dead_layer, from step 3: The norm is 90.",
        "Look at dead_layer.",
    ]


def test_status_of_a_loss_that_is_not_a_number(gpuwatch, recorder):
    recorder.run("broken", fields={"grad_norm": math.inf, "grad_nonfinite_count": 12.0, "loss": math.nan})
    out = gpuwatch("status", "broken").stdout
    assert f"loss       {'!!!':<40} nan" in out
    assert f"gradient   {'!!!':<40} inf, 12 entries not finite" in out


@pytest.mark.parametrize("columns", [72, 80, 100, 200])
def test_status_fits_the_terminal(gpuwatch, recorder, environ, columns):
    fields = {"grad_norm": 90.0, "grad_norm_clipped": 1.0, "update_ratio": 0.001, "data_seconds": 0.1, "forward_seconds": 0.3}
    fields |= {"loss_scale": 1024.0, "loss_scale_backoffs": 1.0, "skipped": 1.0, "overhead_ratio": 0.004, "thinning_level": 3.0}
    recorder.run("a-name-as-long-as-they-are-20261123-094159", ending="exception", fields=fields, finding=finding())
    out = gpuwatch("status", env={**environ, "COLUMNS": str(columns)}).stdout
    for line in out.splitlines():
        assert len(line) <= columns, line
    for word in ("exception", "before clipping, 1 after", "thinned: update_ratio, histograms", "exploding_gradient"):
        assert word in " ".join(out.split()), out


def test_status_of_a_run_without_a_step(gpuwatch, recorder):
    recorder.run("started", steps=0, ending=None)
    result = gpuwatch("status", "started")
    assert result.returncode == 0, result.stderr
    assert "started  live  step 0" in result.stdout


def test_status_json_has_every_rank(gpuwatch, recorder):
    for rank in (1, 0):
        recorder.run("multi", rank=rank, world_size=2, fields={"grad_norm": math.nan})
    told = json.loads(gpuwatch("status", "multi", "--json").stdout)
    assert told["run"] == "multi"
    assert [(rank["rank"], rank["status"], rank["values"]["grad_norm"]) for rank in told["ranks"]] == [
        (0, "finished", "nan"),
        (1, "finished", "nan"),
    ]


def test_status_takes_the_live_run_before_the_newest(gpuwatch, recorder):
    recorder.run("live", ending=None)
    recorder.run("later")
    assert gpuwatch("status").stdout.startswith("live ")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("digits-20261123", "digits-20261123"),
        ("digi", "digits-20261123"),
        ("runs/digits-20261123", "digits-20261123"),
        ("multi/rank1", "multi  finished, rank 1 of 2"),
        ("runs/multi", "multi  finished, rank 0 of 2"),
        ("runs/multi/rank1", "multi  finished, rank 1 of 2"),
    ],
)
def test_a_run_is_found_by_name_beginning_or_path(gpuwatch, recorder, tmp_path, name, shown):
    (tmp_path / "digi").mkdir()  # a folder of that name is no run
    recorder.run("digits-20261123")
    recorder.run("speech")
    for rank in range(2):
        recorder.run("multi", rank=rank, world_size=2)
    result = gpuwatch("status", name)
    assert result.stdout.startswith(shown), result.stdout + result.stderr


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("digtis", "no run 'digtis' in runs; did you mean 'digits-20261123'?"),
        ("zebra", "no run 'zebra' in runs; gpuwatch runs lists them"),
        ("s", "'s' may be speech, speech-2; say which"),
        ("./runs/none", "no run './runs/none' in runs; gpuwatch runs lists them"),
        ("./runs", "no run is recorded in runs"),
    ],
)
def test_a_run_that_is_not_found(gpuwatch, recorder, name, sentence):
    recorder.run("digits-20261123")
    recorder.run("speech")
    recorder.run("speech")
    result = gpuwatch("status", name)
    assert result.returncode == 2
    assert result.stderr == f"Error: {sentence}\n"


def test_no_run_at_all(gpuwatch):
    result = gpuwatch("status")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "Error: no run is recorded in runs; start one with: gpuwatch run -- python train.py\n"


def test_the_log_directory_is_the_one_of_the_configuration(gpuwatch, recorder, tmp_path, environ):
    recorder.run("a")
    (tmp_path / "elsewhere").mkdir()
    settings = {**environ, "GPUWATCH_DAEMON_LOGDIR": str(recorder.logdir)}
    assert gpuwatch("status", cwd=tmp_path / "elsewhere", env=settings).stdout.startswith("a ")
    result = gpuwatch("status", env={**environ, "GPUWATCH_DAEMON_LOGDRI": "x"})
    assert result.returncode == 2
    assert "unknown key 'logdri'; did you mean 'logdir'?" in result.stderr


def test_completion_says_nothing_about_a_configuration_that_is_wrong(gpuwatch, recorder, environ):
    recorder.run("digits")
    asked = {**environ, "_GPUWATCH_COMPLETE": "bash_complete", "COMP_WORDS": "gpuwatch status d", "COMP_CWORD": "2"}
    result = gpuwatch(env={**asked, "GPUWATCH_HOOKS_EVERY": "0"})
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "", "")


def test_names_are_completed_in_the_shell(gpuwatch, recorder, environ):
    recorder.run("digits")
    recorder.run("speech")
    asked = {**environ, "_GPUWATCH_COMPLETE": "bash_complete", "COMP_WORDS": "gpuwatch status d", "COMP_CWORD": "2"}
    assert gpuwatch(env=asked).stdout == "plain,digits\n"
