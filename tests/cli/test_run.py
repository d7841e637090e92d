"""`gpuwatch run`: the daemon it brings or finds, what it says, and that it says nothing where the command speaks."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.running_daemon import RunningDaemon, wait_until

TRAINS = (sys.executable, "-m", "tests.cli.trains")
SAID = re.compile(
    r"gpuwatch: recording as (\S+) in runs, metrics at http://127\.0\.0\.1:(\d+)/metrics( \(port 9877 is taken\))?\n"
)


def runtime_files(environ):
    return sorted(os.listdir(environ["XDG_RUNTIME_DIR"] + "/gpuwatch"))


def gpuwatch_daemons(folder):
    """Pids of daemons that record below `folder`."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if "daemon" in command and os.readlink(f"/proc/{pid}/cwd") == str(folder):
                found[int(pid)] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return [pid for pid, parent in found.items() if parent not in found]  # a child between fork and exec looks the same


def test_a_private_daemon_records_and_is_gone(gpuwatch, tmp_path, environ):
    result = gpuwatch("run", "--name", "first", "--", *TRAINS)
    assert (result.returncode, result.stdout) == (0, "trained\n"), result.stderr
    first, *last = result.stderr.splitlines()
    assert SAID.fullmatch(first + "\n").group(1) == "first"
    assert last == ["gpuwatch: 20 steps recorded, findings: none", "gpuwatch: see gpuwatch status first --logdir runs"]
    (run,) = json.loads(gpuwatch("runs", "--json").stdout)
    assert (run["run"], run["step"], run["status"]) == ("first", 20, "finished")
    assert list((tmp_path / "runs" / "first").glob("events.out.tfevents.*"))
    log = (tmp_path / "runs" / "daemon.log").read_text().splitlines()
    assert [line for line in log if line.endswith("first: finished at step 20")]
    assert runtime_files(environ) == []
    assert gpuwatch_daemons(tmp_path) == []


def test_a_run_is_named_after_its_program(gpuwatch):
    assert re.search(r"recording as trains-\d{8}-\d{6} in runs", gpuwatch("run", "--", *TRAINS).stderr)


@pytest.mark.parametrize(
    ("ending", "code", "how"),
    [
        (("exit", "7"), 7, "failed, exit 7"),
        (("raise", "SIGTERM"), -15, "ended by SIGTERM"),
        (("raise", "SIGKILL"), -9, "killed by SIGKILL"),
    ],
)
def test_it_ends_as_the_command_ended(gpuwatch, ending, code, how):
    result = gpuwatch("run", "--", *TRAINS, *ending)
    assert result.returncode == code, result.stderr
    assert f"20 steps recorded ({how})" in result.stderr
    (run,) = json.loads(gpuwatch("runs", "--json").stdout)
    assert (run["status"], run["step"]) == ("failed", 20)
    assert run["standing"].removesuffix(" (out of memory?)") == how


LAUNCHER = """
import subprocess, sys

ranks = [subprocess.Popen([sys.executable, "rank.py", code]) for code in sys.argv[1:]]
sys.exit(1 if any([rank.wait(timeout=60) for rank in ranks]) else 0)
"""
RANK = """
import sys, torch

weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.SGD([weight], lr=0.1)
for _ in range(20):
    weight.square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ((sys.executable, "-c", LAUNCHER, "0", "3"), 1),  # as torchrun, whatever the rank's own code
        (("sh", "-c", f"{sys.executable} rank.py 3; exit $?"), 3),
    ],
)
def test_a_child_that_leaves_by_sys_exit_fails_its_command(gpuwatch, tmp_path, command, code):
    """Real trainings with the hooks in them: these see the process leave and cannot see its number."""
    (tmp_path / "rank.py").write_text(RANK)
    result = gpuwatch("run", "--name", "x", "--", *command)
    assert result.returncode == code, result.stderr
    how = f"command failed, exit {code}"
    assert f" (the {how}), findings: " in result.stderr
    processes = json.loads(gpuwatch("runs", "--json").stdout)
    assert {(run["status"], run["standing"], run["step"]) for run in processes} == {("failed", how, 20)}
    assert how in gpuwatch("runs").stdout
    assert gpuwatch("status", "x").stdout.startswith(f"x  {how}  step 20")


def test_quiet_says_nothing_and_stdin_is_the_commands(gpuwatch):
    result = gpuwatch("run", "-q", "--", "cat", input="through\n")
    assert (result.returncode, result.stdout, result.stderr) == (0, "through\n", "")


def test_options_after_the_command_are_the_commands(gpuwatch):
    result = gpuwatch("run", "-q", "echo", "--name", "x", "--help", "--", "-q")
    assert result.stdout == "--name x --help -- -q\n"


def test_the_environment_of_the_command(gpuwatch, environ):
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    theirs = {**environ, "PYTHONPATH": "/mine:/yours"}
    theirs.pop("GPUWATCH_SOCKET")
    # python -P finds the package by its installation alone, as a user's does
    result = gpuwatch("run", "-q", "--every", "7", "--name", "a b/../c", "--", sys.executable, "-c", show, env=theirs)
    got = json.loads(result.stdout)
    inject, *others = got.pop("PYTHONPATH").split(":")
    assert inject.endswith("/gpuwatch_hooks/inject")
    assert others == ["/mine", "/yours"]
    assert (got.pop("GPUWATCH"), got.pop("GPUWATCH_HOOKS_EVERY"), got.pop("GPUWATCH_RUN")) == ("1", "7", "a-b-..-c")
    assert re.fullmatch(r"[0-9a-f]{16}", got.pop("GPUWATCH_TOKEN"))
    assert got.pop("GPUWATCH_SOCKET").startswith(environ["XDG_RUNTIME_DIR"])
    got.pop("LC_CTYPE", None)  # Python's own, where the locale is C
    assert {**got, "PYTHONPATH": "/mine:/yours"} == theirs


def test_a_daemon_that_answers_is_used_and_stays(gpuwatch, tmp_path, environ):
    with RunningDaemon(tmp_path, logdir=tmp_path / "shared") as daemon:
        there = {**environ, "GPUWATCH_SOCKET": str(daemon.socket)}
        result = gpuwatch("run", "--name", "mine", "--", *TRAINS, env=there)
        assert result.returncode == 0, result.stderr
        shared = tmp_path / "shared"
        assert result.stderr.splitlines() == [
            f"gpuwatch: recording as mine in {shared}",
            "gpuwatch: 20 steps recorded, findings: none",
            f"gpuwatch: see gpuwatch status mine --logdir {shared}",
        ]
        assert gpuwatch("status", env=there).stdout.startswith("mine  finished  step 20")
        assert daemon.end() == 0
    assert not (tmp_path / "runs").exists()


def test_logdir_brings_a_daemon_of_its_own_beside_one_that_answers(gpuwatch, tmp_path, environ):
    with RunningDaemon(tmp_path, logdir=tmp_path / "shared") as daemon:
        result = gpuwatch(
            "run", "--name", "own", "--logdir", "mine", "--", *TRAINS, env={**environ, "GPUWATCH_SOCKET": str(daemon.socket)}
        )
        assert result.returncode == 0, result.stderr
        assert daemon.runs() == {}
    assert (tmp_path / "mine" / "own" / "run.json").exists()


def test_a_port_that_is_taken_costs_only_the_number(gpuwatch):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", 9877))
        except OSError:
            pass  # somebody else has it: as good
        else:
            other.listen()
        result = gpuwatch("run", "--", *TRAINS)
    found = SAID.search(result.stderr)
    assert found, result.stderr
    assert found.group(2) != "9877"
    assert found.group(3)
    assert "20 steps recorded" in result.stderr


@pytest.mark.parametrize("trouble", ["gone", "open to all", "too long"])
def test_a_runtime_directory_that_is_of_no_use_costs_nothing(gpuwatch, environ, tmp_path, trouble):
    runtime = tmp_path / ("long" * 30 if trouble == "too long" else "session")
    if trouble == "gone":
        runtime.write_text("")  # nothing can be made below it
    else:
        (runtime / "gpuwatch").mkdir(parents=True)
        (runtime / "gpuwatch").chmod(0o777 if trouble == "open to all" else 0o700)
    result = gpuwatch("run", "--", *TRAINS, env={**environ, "XDG_RUNTIME_DIR": str(runtime)})
    assert result.returncode == 0, result.stderr
    assert "20 steps recorded" in result.stderr
    assert os.listdir(tmp_path / ".cache" / "gpuwatch" / "run") == []


def test_without_a_home_the_socket_is_in_the_log_directory(gpuwatch, environ, tmp_path):
    (tmp_path / "file").write_text("")
    nowhere = {"XDG_RUNTIME_DIR": str(tmp_path / "file"), "HOME": str(tmp_path / "file")}
    result = gpuwatch("run", "--", *TRAINS, env={**environ, **nowhere})
    assert result.returncode == 0, result.stderr
    assert "20 steps recorded" in result.stderr
    assert os.listdir(tmp_path / "runs" / ".gpuwatch") == []


def test_a_logdir_that_cannot_be_written_starts_nothing(gpuwatch, tmp_path):
    (tmp_path / "file").write_text("")
    result = gpuwatch("run", "--logdir", "file/runs", "--", "touch", "started")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "Error: file/runs cannot be written (Not a directory); choose another with --logdir\n"
    assert not (tmp_path / "started").exists()


def test_a_daemon_that_cannot_start_starts_nothing(gpuwatch, tmp_path):
    (tmp_path / "gpuwatch.toml").write_text("[daemon]\npoll_secs = 1\n")
    result = gpuwatch("run", "--logdir", "runs", "--", "touch", "started")
    assert result.returncode == 2
    assert result.stderr == "Error: gpuwatch.toml: unknown key daemon.poll_secs; did you mean 'poll_seconds'?\n"
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("name", ["", "///", ".."])
def test_a_name_that_leaves_nothing_is_refused(gpuwatch, tmp_path, name):
    result = gpuwatch("run", "--name", name, "--", "touch", "started")
    assert result.returncode == 2
    assert result.stderr == f"Error: {name!r} is no name for a run, whose folder is called so: give it letters or digits\n"
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    ("command", "code", "sentence"),
    [
        (["no-such-command"], 127, "gpuwatch: no-such-command: command not found"),
        ([sys.executable, "missing.py"], 2, "no training step was seen: it ended before the first optimizer step of torch"),
        ([sys.executable, "-I", "-c", "1"], 0, "no training step was seen: with -I Python ignores PYTHONPATH or sitecustomize"),
        (["/usr/bin/python3", "-c", "1"], 0, "no training step was seen: torch is not installed for /usr/bin/python3"),
        (["true"], 0, "no training step was seen: the hooks see optimizer steps of torch in the Python processes"),
    ],
)
def test_what_is_said_when_nothing_was_trained(gpuwatch, command, code, sentence):
    result = gpuwatch("run", "--", *command)
    assert result.returncode == code
    assert sentence in result.stderr


def test_no_command_is_wrong_use(gpuwatch):
    result = gpuwatch("run", "--name", "x")
    assert result.returncode == 2
    assert "Missing argument" in result.stderr


@pytest.fixture
def started(environ, tmp_path):
    """A `gpuwatch run` whose command has trained and waits; it and its command are gone after the test."""
    command = [sys.executable, "-m", "gpuwatch", "run", "--name", "x", "--", *TRAINS, "wait"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "trained\n"
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)


def test_sigterm_ends_the_command_and_flushes(gpuwatch, started, tmp_path):
    process = started
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert "20 steps recorded" in said
    assert json.loads(gpuwatch("runs", "--json").stdout)[0]["step"] == 20
    assert gpuwatch_daemons(tmp_path) == []


def test_a_daemon_killed_under_the_run_is_started_again(started, tmp_path):
    process = started
    (daemon,) = gpuwatch_daemons(tmp_path)
    os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: gpuwatch_daemons(tmp_path) not in ([], [daemon]))
    time.sleep(0.2)
    process.terminate()
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 10, "the second daemon does not hear SIGTERM"
    assert "gpuwatch: the daemon ended (signal 9) and was started again; its log is runs/daemon.log\n" in said
    assert gpuwatch_daemons(tmp_path) == []


def test_a_shared_daemon_that_goes_under_the_run_is_told(gpuwatch, tmp_path, environ):
    with RunningDaemon(tmp_path, logdir=tmp_path / "shared") as daemon:
        there = {**environ, "GPUWATCH_SOCKET": str(daemon.socket)}
        wait_and_kill = "until grep -q '\"step\": 20' shared/x/run.json; do sleep 0.05; done; "
        kill = wait_and_kill + f"kill -9 {daemon.process.pid}; sleep 0.2"
        result = gpuwatch("run", "--name", "x", "--", *TRAINS, "between", kill, env=there)
        assert result.returncode == 1, "this training's own goodbye finds nobody"
        _, last, gone, see = result.stderr.splitlines()[-4:]
        assert last == "gpuwatch: 20 steps recorded (the command failed, exit 1), findings: none"
        assert re.fullmatch(
            r"gpuwatch: NOT ALL OF IT WAS KEPT: the daemon is gone, and what came after .* is not recorded", gone
        )
        assert see == f"gpuwatch: see gpuwatch status x --logdir {tmp_path / 'shared'}"
        assert gpuwatch("status", "x", "--logdir", "shared").stdout.startswith("x  not followed since 20")
        daemon.kill()  # reaps it, too
        found = gpuwatch("status", env=there)
        assert f"(the last daemon here recorded in {tmp_path / 'shared'}: --logdir)" in found.stderr


def test_a_run_that_is_killed_leaves_no_daemon_and_its_command_goes_on(started, tmp_path):
    assert len(gpuwatch_daemons(tmp_path)) == 1
    command = int(Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()[-1])
    started.kill()
    started.wait(20)
    wait_until(lambda: gpuwatch_daemons(tmp_path) == [])
    assert "tests.cli.trains" in Path(f"/proc/{command}/cmdline").read_text()


def test_inside_another_run_its_daemon_is_used(gpuwatch, tmp_path):
    inner = [sys.executable, "-m", "gpuwatch", "run", "--name", "inner", "--", *TRAINS]
    result = gpuwatch("run", "--name", "outer", "--", *inner)
    assert result.returncode == 0, result.stderr
    assert "gpuwatch: recording as inner in" in result.stderr
    assert sorted(path.name for path in (tmp_path / "runs").glob("*/")) == ["inner"]
